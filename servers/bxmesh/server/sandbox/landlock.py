"""Landlock: what a thread, and all that it starts, may do with files and TCP.

See landlock(7). The calls have no wrappers in libc.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

__all__ = ["restrict", "version"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_GET_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
# With all of these, one may create and remove files of every kind.
_ALL_OF_THE_FIRST = (1 << 13) - 1
_CONNECT_TCP = 1 << 1

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Returns the version of Landlock in this kernel, 0 when it has none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), _GET_VERSION)))


def restrict(
    readable: Iterable[Path], writable: Iterable[Path], tcp_ports: Iterable[int] | None
) -> None:
    """Lets this thread, and those that it starts, read and write beneath these paths only, connect
    to these ports only (None: to all), and execute nothing.

    Paths that do not exist are left out. no_new_privs must be set. Raises OSError when the kernel
    refuses.
    """
    kernel = version()
    files = _ALL_OF_THE_FIRST
    if kernel >= 2:
        files |= _REFER
    if kernel >= 3:
        files |= _TRUNCATE
    net = _CONNECT_TCP if kernel >= 4 and tcp_ports is not None else 0
    attributes = struct.pack("QQ", files, net) if kernel >= 4 else struct.pack("Q", files)
    ruleset = _call(_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in ((readable, _READ), (writable, files & ~_EXECUTE)):
            for path in paths:
                _allow(ruleset, path, rights)
        for port in (tcp_ports or ()) if net else ():
            rule = struct.pack("QQ", _CONNECT_TCP, port)
            _call(_ADD, ruleset, _NET_PORT, ctypes.c_char_p(rule), 0)
        _call(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _WRITE_FILE | _READ_FILE | _TRUNCATE
        rule = struct.pack("=Qi", rights, descriptor)
        _call(_ADD, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    answer = int(_libc.syscall(number, *arguments))
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock: {os.strerror(error)}")
    return answer
