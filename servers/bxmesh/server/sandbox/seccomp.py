"""seccomp: system calls that no calculation needs, refused to all threads of the process.

See seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping

__all__ = ["available", "refuse_dangerous_calls"]

_SET_MODE_FILTER, _TSYNC = 1, 1
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_JUMP_SET = 0x45
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16
# A clone with it is a thread; one without, a process. Where clone3 is unknown, libc takes clone.
_CLONE_THREAD = 0x00010000
_CLONE: Mapping[str, int] = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
# Numbers from here on are those of another calling convention (x32).
_X32 = 0x40000000

# To start programs, to look into others, to change what the system is, to get around the filter.
_REFUSED: Mapping[str, tuple[int, int, Mapping[str, int]]] = {
    "x86_64": (
        0xC000003E,
        317,
        {
            "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101,
            "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
            "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308,
            "unshare": 272, "open_by_handle_at": 304, "bpf": 321, "perf_event_open": 298,
            "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
            "io_uring_register": 427, "add_key": 248, "request_key": 249, "keyctl": 250,
            "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246,
            "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163,
            "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "sethostname": 170,
            "setdomainname": 171, "iopl": 172, "ioperm": 173, "quotactl": 179, "syslog": 103,
        },
    ),
    "aarch64": (
        0xC00000B7,
        277,
        {
            "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270,
            "process_vm_writev": 271, "kcmp": 272, "pidfd_getfd": 438, "mount": 40, "umount2": 39,
            "pivot_root": 41, "chroot": 51, "setns": 268, "unshare": 97, "open_by_handle_at": 265,
            "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425,
            "io_uring_enter": 426, "io_uring_register": 427, "add_key": 217, "request_key": 218,
            "keyctl": 219, "init_module": 105, "finit_module": 273, "delete_module": 106,
            "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224,
            "swapoff": 225, "acct": 89, "settimeofday": 170, "clock_settime": 112,
            "adjtimex": 171, "sethostname": 161, "setdomainname": 162, "quotactl": 60,
            "syslog": 116,
        },
    ),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether this machine's calls are known and the kernel filters them."""
    if platform.machine() not in _REFUSED:
        return False
    # Without a filter the question itself is answered: EFAULT where there is seccomp.
    number = _REFUSED[platform.machine()][1]
    _libc.syscall(number, _SET_MODE_FILTER, _TSYNC, None)
    return ctypes.get_errno() == errno.EFAULT


def refuse_dangerous_calls() -> None:
    """Has the calls above fail with EPERM, in all threads. no_new_privs must be set.

    Raises OSError when the kernel refuses.
    """
    architecture, number, refused = _REFUSED[platform.machine()]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    for call in refused.values():
        program += [(_JUMP_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    program += [
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 3, _CLONE[platform.machine()]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_OFFSET),
        (_JUMP_SET, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    if _libc.syscall(number, _SET_MODE_FILTER, _TSYNC, ctypes.c_char_p(header)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")
