"""What becomes of a sample."""

from enum import Enum

__all__ = ["Status"]


class Status(Enum):
    """What became of one sample."""

    OK = "ok"
    """Computed."""
    NON_FINITE = "non_finite"
    """Coordinates of restrained atoms, or the energy, are NaN or infinite."""
    OUT_OF_RANGE = "out_of_range"
    """A restrained atom is more than 10 000 Å from the origin on an axis."""
    EXPLODED = "exploded"
    """Atoms up to three bonds apart are farther from each other than `max_bond_distance`."""
    CROWDED = "crowded"
    """Millions of pairs of atoms are in contact."""
