"""The inputs of a model, by the names that errors call them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from bxmesh.geometry.v1 import bundle_pb2, model_pb2
from bxmesh.server.bundles import BundleStore
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


def named_bundles(request: Any) -> Iterator[str]:
    """The bundles, besides its model, that a calculation is asked to read."""
    fields = request.DESCRIPTOR.fields_by_name
    if "coordinates" in fields and request.coordinates.bundle_id:
        yield request.coordinates.bundle_id
    if "map_bundle_id" in fields:
        yield request.map_bundle_id


def model_spec(
    store: BundleStore, model_id: str, sees: Callable[[bundle_pb2.Bundle], bool]
) -> model_pb2.ModelSpec:
    """What a model that somebody sees is made of; raises MeshError NOT_FOUND."""
    try:
        bundle = store.get(model_id)
        if bundle.kind == bundle_pb2.BUNDLE_KIND_MODEL and sees(bundle):
            return model_pb2.ModelSpec.FromString(store.read(model_id))
    except MeshError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
    raise MeshError(
        grpc.StatusCode.NOT_FOUND,
        "MODEL_NOT_FOUND",
        f"There is no model {model_id}, or no longer. Create it with CreateModel.",
        metadata={"model_id": model_id},
    )
