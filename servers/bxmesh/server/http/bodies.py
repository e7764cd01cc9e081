"""Bodies of requests, in bounded size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from bxmesh.server.http.problems import RefusalError, invalid_value, refusal
from bxmesh.server.http.settings import HttpSettings

__all__ = ["MODEL", "PARTS", "REFLECTIONS", "File", "read_files", "read_json", "skip_body"]

MODEL, REFLECTIONS = "model", "reflections"
PARTS = (MODEL, REFLECTIONS)

_LONGEST_NAME = 255


@dataclass(frozen=True)
class File:
    """A file that came."""

    name: str
    """As its sender calls it; empty for none."""
    content: bytes


async def read_json(request: Request, settings: HttpSettings, *, optional: bool = False) -> bytes:
    """Returns a body that says that it is JSON; an optional one may be empty."""
    data = b"".join([part async for part in _parts(request, settings, settings.max_json_bytes)])
    if not data and optional:
        return data
    kind = _media_type(request)
    if kind != "application/json" and not kind.endswith("+json"):
        raise _unsupported("This takes JSON: send Content-Type: application/json.")
    return data


async def skip_body(request: Request, settings: HttpSettings) -> None:
    """Reads what nobody asked for, so that the connection can be used again."""
    async for _ in _parts(request, settings, settings.max_json_bytes):
        pass


async def read_files(request: Request, settings: HttpSettings) -> dict[str, File]:
    """Returns the files of a form by the names of their parts, or the whole body as the model."""
    parts = _parts(request, settings, settings.max_upload_bytes)
    if _media_type(request) == "multipart/form-data":
        return await _form(request, parts)
    data = b"".join([part async for part in parts])
    if not data:
        raise _missing(MODEL)
    return {MODEL: File("", data)}


async def _form(request: Request, parts: AsyncGenerator[bytes, None]) -> dict[str, File]:
    files: dict[str, File] = {}
    try:
        parser = MultiPartParser(request.headers, parts, max_files=len(PARTS), max_fields=0)
        form = await parser.parse()
    except (MultiPartException, HTTPException, KeyError, UnicodeError) as error:
        message = getattr(error, "message", "") or "the form cannot be read"
        raise invalid_value("", message) from None
    try:
        for name, part in form.multi_items():
            if name not in PARTS or not isinstance(part, UploadFile):
                raise invalid_value(
                    name[:100], f"is no file of this form; it has {', '.join(PARTS)}"
                )
            if name in files:
                raise invalid_value(name, "is there twice")
            content = await part.read()
            files[name] = File((part.filename or "")[:_LONGEST_NAME], content)
    finally:
        await form.close()
    if not files.get(MODEL, File("", b"")).content:
        raise _missing(MODEL)
    return files


async def _parts(
    request: Request, settings: HttpSettings, most: int
) -> AsyncGenerator[bytes, None]:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _unsupported("Bodies come as they are, without Content-Encoding.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    size = 0
    parts = request.stream()
    while True:
        try:
            async with asyncio.timeout(settings.receive_timeout):
                part = await anext(parts, None)
        except TimeoutError:
            raise refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "BODY_TOO_SLOW",
                f"Nothing of the body came for {settings.receive_timeout:g} s.",
                status=408,
            ) from None
        except ClientDisconnect:
            raise asyncio.CancelledError from None
        if part is None:
            return
        size += len(part)
        if size > most:
            raise _too_large(most)
        yield part


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _missing(field: str) -> RefusalError:
    return invalid_value(
        field, "is needed: send a PDB or mmCIF file as the body, or as this part of a form"
    )


def _unsupported(message: str) -> RefusalError:
    return refusal(grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_MEDIA_TYPE", message, status=415)


def _too_large(most: int) -> RefusalError:
    return refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "BODY_TOO_LARGE",
        f"The body is larger than the {most} bytes that this takes.",
        status=413,
    )
