"""The inputs of a model, by the names that errors call them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from bxmesh.server.errors import MeshError


@contextlib.contextmanager
def naming(name: str, bundle_id: str) -> Iterator[None]:
    """Makes a bundle that is not there the error of the input that should be in it."""
    try:
        yield
    except MeshError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
        raise MeshError(
            error.code,
            error.reason,
            f"{name}: {error.message}",
            metadata={"input": name, "bundle_id": bundle_id},
            field_violations=[(f"spec.{name}", error.message)],
        ) from error
