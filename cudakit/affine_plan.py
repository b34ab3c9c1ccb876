"""How the affine grid generator is launched."""

from math import prod

from cudakit.array import CPU, Spec
from cudakit.launch import Launch, load
from cudakit.op import NULL, Output, Plan, Slot, Target
from cudakit.sampling_plan import is_wide
from cudakit.source import Kernel, type_constants
from cudakit.structs import pack_tail

FIELDS = (
    *((name, 1) for name in ("theta", "grid", "grad_grid", "partial", "grad_theta")),
    *((name, 1) for name in ("items", "chunks", "align_corners")),
    ("size", 3),
)
FORWARD, PARTIAL, TOTAL = (
    Kernel("affine_grid.cu", name, "AffineGridParams", FIELDS, pointers=5)
    for name in ("affine_grid", "affine_grid_backward_partial", "affine_grid_backward_total")
)
HOST_TILE = 64
CUDA_LANES = 32
CHUNK_PIXELS = 4096  # pixels that one item of the backward pass sums
SUM_BYTES = 8


def _launch(kernel: Kernel, dtype: str, space: tuple[int, ...], target: Target, lanes: int, *tail: int,
            work: int) -> Launch:
    items, batch, chunks, align_corners = tail
    wide = is_wide(((batch * prod(space) * len(space) + items * lanes + 2,), (1,)))
    tile = HOST_TILE if target.device == CPU else 1
    constants = type_constants(dtype, dtype, wide) | {"NDIM": len(space), "TILE": tile, "LANES": lanes, "VEC": 1}
    packed = pack_tail(kernel, items, chunks, align_corners, space)
    return Launch(load(kernel, tuple(constants.items()), target.device), packed, items, 1, work)


def plan_affine_grid(dtype: str, size: tuple[int, ...], align_corners: bool, target: Target) -> Plan:
    """Plan `affine_grid`; `size` is (N, C, O...)."""
    batch, space = size[0], size[2:]
    plan = Plan(1, (Output((batch, *space, len(space)), dtype),))
    tile = HOST_TILE if target.device == CPU else 1
    items = batch * prod(space[:-1]) * -(-space[-1] // tile)
    launch = _launch(FORWARD, dtype, space, target, 1, items, batch, 0, int(align_corners), work=batch * prod(space))
    plan.launch(launch, plan.input(0), plan.result(0), NULL, NULL, NULL)
    return plan


def plan_affine_grid_backward(grad: Spec, size: tuple[int, ...], align_corners: bool, target: Target) -> Plan:
    """Plan `affine_grid_backward`: sums of chunks, then the sums of the sums, in the same order every time."""
    batch, space = size[0], size[2:]
    n = len(space)
    plan = Plan(1, (Output((batch, n, n + 1), grad.dtype),))
    chunks = min(prod(space[:-1]), -(-prod(space) // CHUNK_PIXELS))
    lanes = 1 if target.device == CPU else CUDA_LANES
    partial: Slot = plan.workspace(batch * chunks * n * (n + 1) * SUM_BYTES)
    slots = (NULL, NULL, plan.input(0), partial, plan.result(0))
    numbers = batch * n * (n + 1)
    for kernel, items, count in ((PARTIAL, batch * chunks, lanes), (TOTAL, numbers, 1)):
        work = batch * prod(space) if kernel is PARTIAL else 0
        shape = (items, batch, chunks, int(align_corners))
        plan.launch(_launch(kernel, grad.dtype, space, target, count, *shape, work=work), *slots)
    return plan
