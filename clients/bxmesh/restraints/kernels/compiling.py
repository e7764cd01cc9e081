"""How the kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

try:
    import numba
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    raise ModuleNotFoundError(
        "bxmesh.restraints.Evaluator needs numba, which is not installed: pip install 'bxmesh[fast]'",
        name="numba",
    ) from error

__all__ = ["compiled"]

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Returns the function compiled, free of the GIL, and kept on disk where that can be written.

    Numbers are added in the order of the source: no fast-math, so that results can be repeated.
    """
    try:
        return cast(_F, numba.njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # neither beside the source nor in the user's cache
        return cast(_F, numba.njit(nogil=True, error_model="numpy")(function))
