"""Models from the regression data of the cctbx wheel, built once for all tests."""

from collections.abc import Callable
from functools import cache

import pytest

from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary
from bxmesh.server.geometry.engine.model import BuiltModel, build
from tests.engine.prepared import prepared_library
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_bytes


@pytest.fixture(scope="session")
def library() -> RestraintLibrary:
    return prepared_library()


@pytest.fixture(scope="session")
def built(library: RestraintLibrary) -> Callable[[str], BuiltModel]:
    @cache
    def from_wheel(path: str) -> BuiltModel:
        return build(ModelInputs(wheel_bytes(path)), library)

    return from_wheel


@pytest.fixture(scope="session")
def crystal(library: RestraintLibrary) -> BuiltModel:
    """7n2l with its data."""
    return build(ModelInputs(wheel_bytes(PDB_7N2L), wheel_bytes(MTZ_7N2L)), library)
