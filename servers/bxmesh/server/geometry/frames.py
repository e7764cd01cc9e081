"""Frames on the connection between a server and the worker of a session: a length and a message."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TypeVar

from google.protobuf.message import Message

TOKEN_BYTES = 32
MAX_FRAME_BYTES = 8 * 1024 * 1024
"""More than any message of gRPC's default limit, 4 MiB."""

_LENGTH = struct.Struct("<I")
_M = TypeVar("_M", bound=Message)


class FrameTooLargeError(ConnectionError):
    """The other side sent a length that no message has."""


def encode(message: Message) -> bytes:
    """A message as one frame."""
    data = message.SerializeToString()
    return _LENGTH.pack(len(data)) + data


async def read(reader: asyncio.StreamReader, kind: type[_M]) -> _M:
    """The next message; raises IncompleteReadError at the end."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    _check(length)
    return kind.FromString(await reader.readexactly(length))


def receive(connection: socket.socket, kind: type[_M]) -> _M | None:
    """The next message from a blocking socket; None when the other side has closed it."""
    header = receive_exactly(connection, _LENGTH.size)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    _check(length)
    data = receive_exactly(connection, length)
    return None if data is None else kind.FromString(bytes(data))


def receive_exactly(connection: socket.socket, size: int) -> bytearray | None:
    """So many bytes, or None when the other side closes before."""
    data = bytearray(size)
    view = memoryview(data)
    got = 0
    while got < size:
        count = connection.recv_into(view[got:])
        if count == 0:
            return None
        got += count
    return data


def _check(length: int) -> None:
    if length > MAX_FRAME_BYTES:
        raise FrameTooLargeError(f"a frame of {length} bytes")
