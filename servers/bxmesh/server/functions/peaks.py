"""How much memory a process has held, as Linux counts it."""

from __future__ import annotations

import os

__all__ = ["peak_of", "reset_peak"]

_RESET = b"5"


def reset_peak(pid: int | None) -> None:
    """Lets a process's peak begin anew; does nothing where that cannot be done."""
    try:
        with open(f"/proc/{pid}/clear_refs", "wb", buffering=0) as file:  # noqa: PTH123
            file.write(_RESET)
    except OSError:
        return


def peak_of(pid: int | None) -> int:
    """Returns the most bytes of resident memory since then; 0 where that is not known."""
    try:
        file = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    except OSError:
        return 0
    try:
        text = os.read(file, 4096)
    except OSError:
        return 0
    finally:
        os.close(file)
    _, found, rest = text.partition(b"VmHWM:")
    return int(rest.split(maxsplit=1)[0]) * 1024 if found else 0
