"""Coordinates are checked before they reach cctbx."""

import numpy as np
import pytest

from bxmesh.server.geometry.engine import EngineError, SampleStatus, as_samples, check_sample


def test_one_sample_and_batches() -> None:
    assert as_samples(np.zeros((4, 3)), 4).shape == (1, 4, 3)
    batch = as_samples(np.ones((2, 4, 3), dtype=np.float32), 4)
    assert batch.shape == (2, 4, 3)
    assert batch.dtype == np.float64


@pytest.mark.parametrize(
    "shape", [(3,), (4, 2), (5, 3), (2, 5, 3), (0, 4, 3), (1, 1, 4, 3), (4, 3, 1)]
)
def test_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError) as caught:
        as_samples(np.zeros(shape), 4)
    assert caught.value.reason == "COORDINATES_SHAPE"


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.complex128, np.str_, object])
def test_wrong_dtype_is_refused(dtype: type) -> None:
    with pytest.raises(EngineError) as caught:
        as_samples(np.zeros((4, 3)).astype(dtype), 4)
    assert caught.value.reason == "COORDINATES_DTYPE"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda x: x, SampleStatus.OK),
        (lambda x: np.where(x == x.max(), np.nan, x), SampleStatus.NON_FINITE),
        (lambda x: np.where(x == x.max(), np.inf, x), SampleStatus.NON_FINITE),
        (lambda x: np.where(x == x.max(), -np.inf, x), SampleStatus.NON_FINITE),
        (lambda x: x - 10_100, SampleStatus.OUT_OF_RANGE),
        (lambda x: x * 0, SampleStatus.DEGENERATE),
        (lambda x: x * 0 + 3, SampleStatus.DEGENERATE),
    ],
)
def test_verdicts(change, status: SampleStatus) -> None:
    sites = np.random.default_rng(0).uniform(-50, 50, (10, 3))
    check = check_sample(change(sites))
    assert check.status is status
    assert bool(check.message) == (status is not SampleStatus.OK)


def test_first_and_last_atom_may_coincide() -> None:
    sites = np.random.default_rng(0).uniform(-50, 50, (10, 3))
    sites[-1] = sites[0]
    assert check_sample(sites).status is SampleStatus.OK


def test_single_atom_is_not_degenerate() -> None:
    assert check_sample(np.zeros((1, 3))).status is SampleStatus.OK
