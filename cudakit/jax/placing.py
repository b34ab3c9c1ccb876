"""Where arrays lie on a mesh of devices: operators see whole ones, and are shared out by `shard_map` or by a map."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mesh_of(arrays: Iterable[Any]) -> Any:
    """Return the mesh in the types of some arrays, or None where it has no explicit axes."""
    meshes = (jax.typeof(x).sharding.mesh for x in arrays if x is not None)
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def placed(x: Any, mesh: Any, *axes: Any) -> Any:
    """Shard the leading dimensions over explicit axes of a mesh, and no others."""
    return x if mesh is None else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*axes)))


def whole(x: Any) -> Any:
    """Gather what is sharded explicitly: a callback sees whole arrays, and JAX reshapes no sharded axis unasked."""
    return placed(x, mesh_of([x]))


def leading(arrays: Iterable[Any]) -> Any:
    """Return the explicit axes of a mesh over which an axis that `vmap` maps is sharded."""
    return next(filter(None, (jax.typeof(x).sharding.spec[0] for x in arrays)), None)


def typed(like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return the type of a result: not sharded, and differing along the axes of a mesh as an argument's type does."""
    spec = PartitionSpec(*[None] * len(shape))
    return like.update(shape=shape, dtype=dtype, weak_type=False, sharding=NamedSharding(like.sharding.mesh, spec))


def _varying(x: Any) -> frozenset[Any]:
    """Return the axes of a mesh along which an array differs, inside ``shard_map``."""
    kind = jax.typeof(x)
    found: frozenset[Any] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
    return found


def alike(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Gather all arrays, and let all differ along the axes along which one does, as the operators of JAX do."""
    axes = frozenset().union(*(_varying(x) for x in arrays if x is not None))
    return tuple([x if x is None else _cast(whole(x), axes) for x in arrays])


def _cast(x: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(axes - _varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
