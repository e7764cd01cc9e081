"""What this package raises."""

__all__ = ["RestraintsError"]


class RestraintsError(ValueError):
    """Restraints or coordinates that cannot be used: `message` says what is wrong and what to do.

    `reason` is RESTRAINTS_LAYOUT_UNKNOWN, RESTRAINTS_DAMAGED, COORDINATES_DTYPE or
    COORDINATES_SHAPE.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
