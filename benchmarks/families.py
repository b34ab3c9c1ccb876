"""The families of rows."""

from . import deformable, sampling

FAMILIES = {family.name: family for family in (sampling.FAMILY, deformable.FAMILY)}
