"""Gradients by an image that are the same in every run on a GPU: numbers are rounded before they are added up.

See `Sums` in core.cuh. Parts of sums lie one behind the other.
"""

from collections.abc import Sequence
from math import prod

from cudakit.arithmetic import ceil_div
from cudakit.layout import Image, accumulator, is_wide, packed
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.source import Kernel, type_constants
from cudakit.workspace import ALIGNMENT

MOST_PRODUCTS = 3
FIELDS = (
    *((name, 1) for name in ("from", "exponents", "anchors", "items", "count")),
    *(("size", 3), ("from_stride", 3), ("products", MOST_PRODUCTS), ("power", 1), ("log2_terms", 1)),
)
LARGEST_EXPONENT, MAKE_ANCHORS = (
    Kernel("rounding.cu", name, "RoundingParams", FIELDS, pointers=3) for name in ("largest_exponent", "make_anchors")
)
EXPONENT_LANES = 32
EXPONENT_BYTES, ANCHORS_AT, ANCHOR_BYTES = 4, 32, 8
DIGITS = {"float64": 60}  # bits of the largest number that are kept at least
FEWEST_DIGITS = 30
MOST_PARTS = 8
Factor = tuple[Slot, Image]


def sum_dtype(dtype: str, target: Target) -> str:
    """Return the dtype that gradients by an image of that dtype are added up in."""
    return "float64" if target.reproducible else accumulator(dtype)


def rounded_parts(dtype: str, target: Target, terms: int) -> int:
    """Return in how many parts numbers are added up, so many of them to a sum at most; 0 if they are not rounded.

    A part takes 52 bits of a float64 number, less those of the number of terms.
    """
    if not target.reproducible:
        return 0
    bits = 52 - _bits(terms)
    return min(ceil_div(DIGITS.get(dtype, FEWEST_DIGITS) + 1, bits), MOST_PARTS) if bits > 0 else MOST_PARTS


def _bits(terms: int) -> int:
    """Return the exponent of the least power of two that is not less."""
    return (terms - 1).bit_length()


def anchor_bytes(target: Target) -> int:
    """Return the bytes of temporary memory that `add_anchors` takes."""
    return ALIGNMENT * target.reproducible


def one_row(count: int, dtype: str) -> Image:
    """Return a contiguous array of so many numbers as an image."""
    return packed((1, 1, count), dtype, channels_last=False)


def add_anchors(plan: Plan, products: Sequence[Sequence[Factor]], terms: int, power: int = 0) -> Slot:
    """Append what finds anchors for sums of up to `terms` numbers, and return their slot.

    Each is below 2^`power` times one of the `products` of numbers of arrays. An array that is not there, and a target
    that does not need anchors, count for nothing.
    """
    target = plan.target
    if not target.reproducible:
        return NULL
    given = [[(slot, x) for slot, x in product if slot != NULL] for product in products]
    factors = list(dict.fromkeys(factor for product in given for factor in product))
    space = plan.workspace(ANCHORS_AT + MOST_PARTS * ANCHOR_BYTES)
    plan.zero(space, ANCHORS_AT)
    for k, (slot, x) in enumerate(factors):
        _add_exponent(plan, slot, x, space.at(k * EXPONENT_BYTES))
    flags = tuple(sum(1 << factors.index(factor) for factor in product) for product in given)
    constants, slots = _constants("float64", 1, wide=False), (NULL, space, space.at(ANCHORS_AT))
    values = (0, (), (), flags, power, _bits(terms))
    plan.launch(MAKE_ANCHORS, constants, slots, MOST_PARTS, values, work=1)
    return space.at(ANCHORS_AT)


def _add_exponent(plan: Plan, source: Slot, x: Image, goal: Slot) -> None:
    """Append what finds the largest exponent of an array whose pixels are one stride apart."""
    sizes, strides = (*x.shape[:2], prod(x.space)), x.pixel_strides
    order = sorted(range(3), key=lambda i: -abs(strides[i]))  # threads are neighbours as what they read is
    size, stride = (tuple(values[i] for i in order) for values in (sizes, strides))
    count = prod(size)
    items = ceil_div(count, EXPONENT_LANES)
    wide = is_wide([(size, stride)], count)
    constants, values = _constants(x.dtype, EXPONENT_LANES, wide=wide), (count, size, stride, (), 0, 0)
    plan.launch(LARGEST_EXPONENT, constants, (source, goal, NULL), items, values, work=count)


def _constants(dtype: str, lanes: int, *, wide: bool) -> dict[str, str | int]:
    return type_constants(dtype, dtype, wide) | {"TILE": 1, "LANES": lanes, "VEC": 1}
