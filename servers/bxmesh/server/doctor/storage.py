"""Where the mesh keeps things."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from bxmesh.server.doctor.findings import Finding, fail, ok, warn
from bxmesh.server.security.admin_key import FILE_NAME
from bxmesh.server.settings import Settings

__all__ = ["check_directories", "check_disk"]

_LEAST_BYTES = 64 << 20
_GOOD_BYTES = 2 << 30


def check_directories(settings: Settings) -> list[Finding]:
    """Looks whether the state directory can be written, and by its owner only."""
    folder = settings.state_dir
    other = "Give another --state-dir (BXMESH_STATE_DIR)"
    if folder.exists() and not folder.is_dir():
        return [fail("state directory", f"{folder} is not a directory", f"{other}.")]
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        message = f"{place} cannot be written: {error.strerror}"
        return [fail("state directory", message, f"{other}, or run: chown {os.getuid()} {place}")]
    if not folder.exists():
        return [ok("state directory", f"{folder} will be made")]
    findings = [_owned(folder)]
    key = folder / FILE_NAME
    if key.exists():
        findings.append(_key(key))
    if settings.run_dir.exists():
        findings += _sockets_owned(settings.run_dir)
    return findings


def check_disk(settings: Settings) -> list[Finding]:
    """Looks how much room there is."""
    free = shutil.disk_usage(_existing(settings.state_dir)).free
    message = f"{free / 2**30:.1f} GiB free for {settings.state_dir}"
    remedy = "Free some space, or give a --state-dir on another disk."
    if free <= _LEAST_BYTES:
        return [fail("disk", message, remedy)]
    if free < max(_GOOD_BYTES, settings.max_bundle_bytes):
        return [warn("disk", message, remedy)]
    return [ok("disk", message)]


def _owned(folder: Path) -> Finding:
    status = folder.stat()
    if stat.S_IMODE(status.st_mode) & 0o077:
        message = f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
        return warn("state directory", message, f"Run: chmod 700 {folder}")
    return ok("state directory", f"{folder}, writable")


def _key(path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        message = f"{path} can be read by others (mode {mode:04o})"
        return fail("admin key", message, f"Run: chmod 600 {path}")
    if not os.access(path, os.R_OK):
        return fail("admin key", f"{path} cannot be read", f"Run: chown {os.getuid()} {path}")
    return ok("admin key", f"{path}, mode {mode:04o}")


def _sockets_owned(folder: Path) -> list[Finding]:
    status = folder.stat()
    if status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return []
    message = f"{folder} is not yours alone"
    return [fail("socket directory", message, f"Run: chmod 700 {folder}, or remove it.")]


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
