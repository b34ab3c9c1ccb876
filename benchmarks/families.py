"""The families of rows."""

from . import deformable, sampling

GROWTH = "growth"  # is measured beside the families
FAMILIES = {family.name: family for family in (sampling.FAMILY, deformable.FAMILY)}
