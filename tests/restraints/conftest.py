"""Models of the cctbx wheel with their restraints exported, built once for all tests."""

from collections.abc import Callable
from functools import cache

import pytest

from bxmesh.server.geometry.engine import ModelInputs
from tests.engine.prepared import prepared_library
from tests.engine.wheel import wheel_bytes
from tests.restraints.plain import Exported

# isort: split
# After cctbx, as it brings another C++ runtime.
from tests.restraints.backends import BACKENDS, Backend


@pytest.fixture(scope="session")
def exported() -> Callable[..., Exported]:
    """Returns the restraints of a file of the wheel, or of bytes."""
    library = prepared_library()

    @cache
    def export(source: str | bytes, *dictionaries: bytes) -> Exported:
        data = wheel_bytes(source) if isinstance(source, str) else source
        return Exported(ModelInputs(data, restraints=dictionaries), library)

    return export


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Returns what makes an evaluator of restraints, one after the other."""
    return BACKENDS[request.param]
