"""Secrets in files that only their owner can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["load_or_create"]

_LONGEST = 1024


def load_or_create(path: Path, make: Callable[[], str]) -> str:
    """Returns the secret of a file; the first of any processes to ask makes it.

    The file has mode 0600. Raises PermissionError when others can read it.
    """
    if not path.exists():
        _create(path, make())
    with path.open() as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise PermissionError(f"{path} can be read by others; run: chmod 600 {path}")
        return file.read(_LONGEST).strip()


def _create(path: Path, secret: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, does not replace the secret of a process that was faster.
        path.hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        draft.unlink()
