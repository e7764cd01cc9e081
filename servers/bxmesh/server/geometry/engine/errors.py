"""What the engine raises for input it cannot use."""

from bxmesh.server.geometry.engine.types import SampleStatus


class EngineError(Exception):
    """An input cannot be used: says whose input, what is wrong with it and what to do.

    `reason` is an UPPER_SNAKE code, `field` names the input (macromolecule, reflections,
    restraints, coordinates, options, or a number such as d_min), `subjects` names what the message
    is about, for example the residues that the library does not know.
    """

    def __init__(
        self, reason: str, message: str, *, field: str, subjects: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.subjects = subjects


class SampleError(Exception):
    """One set of coordinates cannot be evaluated; the model remains good for the next one."""

    def __init__(self, status: SampleStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
