"""Checks of shapes, dtypes and values that several operators share."""

from collections.abc import Collection, Mapping, Sequence, Set
from operator import index
from typing import Any

import numpy as np

from cudakit.array import Spec
from cudakit.errors import UNREADABLE, InvalidArgument

FLOATING = ("float16", "bfloat16", "float32", "float64")
HALF = ("float16", "bfloat16")
MOST_SHOWN = 100  # characters of a value that is refused


def shown(value: object) -> str:
    """Return what to show of an option that is refused: not all of an array that came in its place."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # of a class of the caller's, or of an int of more digits than Python prints
        many = type(error) is ValueError and "digits" in str(error)
        fault = "of too many digits" if many else f"whose repr raises {type(error).__name__}"
        return f"{type(value).__name__} {fault}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def choice(argument: str, value: object, allowed: Collection[str]) -> None:
    """Check that an option is one of the allowed strings."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidArgument(argument, f"be one of {', '.join(map(repr, allowed))}", shown(value))


def boolean(argument: str, value: object) -> None:
    """Check that a switch is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(argument, "be True or False", shown(value), TypeError)


def names(argument: str, value: object, allowed: Collection[str]) -> tuple[str, ...]:
    """Check that a collection of names holds only allowed ones, and return them in the order of `allowed`."""
    rule = f"be a collection of names from {tuple(allowed)}"
    if isinstance(value, str) or not isinstance(value, Collection) or getattr(value, "shape", None) == ():
        raise InvalidArgument(argument, rule, shown(value), TypeError)
    try:
        given = list(value)
    except UNREADABLE:
        raise InvalidArgument(argument, rule, shown(value), TypeError) from None
    if not all(isinstance(name, str) and name in allowed for name in given):
        raise InvalidArgument(argument, f"hold only names from {tuple(allowed)}", shown(value))
    return tuple(name for name in allowed if name in given)


def integers(
    argument: str, value: Any, rule: str, *, length: Collection[int], minimum: int, instead: Any = None
) -> tuple[int, ...]:
    """Check a sequence of integers, and return it as a tuple of ints; `instead` is what the caller gave."""
    came = value if instead is None else instead
    try:
        if isinstance(value, (bytes, bytearray, Set, Mapping)):  # numbers, but in no order or of another meaning
            raise TypeError
        numbers = tuple(_integer(number) for number in value)
    except UNREADABLE:
        raise InvalidArgument(argument, rule, shown(came), TypeError) from None
    if len(numbers) not in length or any(number < minimum for number in numbers):
        raise InvalidArgument(argument, rule, shown(came))
    return numbers


def _integer(number: Any) -> Any:
    """Return an integer as an int; a size that PyTorch traces as a symbol stays one."""
    if type(number) is int or type(number).__name__ == "SymInt":
        return number
    return index(number)


def workspace(limit: int | None, needed: int) -> None:
    """Check that a call may take as much temporary memory as it needs at least."""
    if limit is not None and limit < needed:
        raise InvalidArgument("workspace", f"be at least {needed} bytes here", limit)


def floating(argument: str, spec: Spec) -> None:
    """Check that an array is of one of the four floating dtypes."""
    if spec.dtype not in FLOATING:
        raise InvalidArgument(argument, f"have a dtype among {', '.join(FLOATING)}", spec.dtype, TypeError)


def same_dtype(argument: str, spec: Spec, reference: str, dtype: str) -> None:
    """Check that an array shares the dtype of the argument called `reference`."""
    if spec.dtype != dtype:
        raise InvalidArgument(argument, f"have the dtype of {reference}, {dtype}", spec.dtype, TypeError)


def coordinate_dtype(argument: str, spec: Spec, reference: str, dtype: str) -> None:
    """Check the dtype of coordinates: that of the data, or float32 beside half-precision data."""
    if spec.dtype != dtype and not (spec.dtype == "float32" and dtype in HALF):
        rule = f"have the dtype of {reference}, {dtype}" + (", or float32" if dtype in HALF else "")
        raise InvalidArgument(argument, rule, spec.dtype, TypeError)


def shape(argument: str, spec: Spec, expected: Sequence[int | str], reason: str = "") -> None:
    """Check an array's shape.

    Parameters
    ----------
    argument : str
        Name of the argument.
    spec : Spec
        What came.
    expected : sequence of int or str
        A size for each dimension: a number that must be met, a name for a free size (``"H_out"``), or a name with its
        number (``"N=2"``).
    reason : str
        Where that comes from, if it needs to be said.
    """
    if len(expected) == len(spec.shape) and all(map(_fits, expected, spec.shape)):
        return
    wanted = ", ".join(map(str, expected))
    raise InvalidArgument(argument, f"have shape ({wanted}){reason}", spec.shape)


def _fits(expected: int | str, size: int) -> bool:
    if isinstance(expected, str):
        _, equals, number = expected.rpartition("=")
        return not equals or int(number) == size
    return expected == size


def dimensions(argument: str, spec: Spec, allowed: Collection[int], layout: str) -> None:
    """Check an array's number of dimensions; `layout` describes its shape to the reader."""
    if len(spec.shape) not in allowed:
        *most, last = map(str, allowed)
        count = f"{', '.join(most)} or {last}" if most else last
        raise InvalidArgument(argument, f"have {count} dimensions {layout}", f"shape {spec.shape}")
