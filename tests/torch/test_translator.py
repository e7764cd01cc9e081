"""Coordinates from one library to another, with memory shared where that is possible."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from cctbx.array_family import flex

from bxmesh.client import InvalidInput, Mesh, Model
from bxmesh.client.torch import ATOM37, CoordinateTranslator, from_atom37, to_atom37
from bxmesh.tensors import from_message
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, wheel_bytes, wheel_file
from tests.torch.conftest import sites_of

SITES = np.random.default_rng(0).normal(size=(5, 3))


def address(source: torch.Tensor | np.ndarray) -> int:
    if isinstance(source, torch.Tensor):
        return source.data_ptr()
    return source.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "?"])
def test_numpy_and_torch_share_memory(dtype: str) -> None:
    translator = CoordinateTranslator()
    array = SITES.astype(dtype)
    tensor = translator.to_torch(array)
    assert address(tensor) == address(array)
    assert address(translator.to_numpy(tensor)) == address(array)
    assert address(translator.to_torch(tensor)) == address(array)
    tensor[0, 0] = 1
    assert array[0, 0] == 1


def test_views_share_memory() -> None:
    tensor = CoordinateTranslator().to_torch(SITES[::2])
    assert address(tensor) == address(SITES)
    assert tensor.stride() == (6, 1)


@pytest.mark.parametrize(
    "array", [SITES[::-1], SITES.astype(">f8"), SITES.tolist(), np.frombuffer(SITES.tobytes())]
)
def test_what_torch_cannot_share_is_copied(array: object) -> None:
    tensor = CoordinateTranslator().to_torch(array)
    np.testing.assert_array_equal(tensor, np.asarray(array, "f8"))


def test_types_and_devices() -> None:
    translator = CoordinateTranslator(torch.float32, "cpu")
    tensor = translator.to_torch(SITES)
    assert tensor.dtype == torch.float32
    assert translator.to_numpy(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == np.float32


def test_tensors_stay_in_the_graph() -> None:
    source = torch.ones(2, 3, requires_grad=True)
    CoordinateTranslator(torch.float64).to_torch(source).sum().backward()
    assert source.grad is not None


def test_messages() -> None:
    translator = CoordinateTranslator()
    message = translator.to_message(torch.tensor(SITES))
    assert (message.spec.name, message.spec.unit) == ("coordinates", "angstrom")
    np.testing.assert_array_equal(from_message(message, max_bytes=1 << 20), SITES)
    np.testing.assert_array_equal(translator.to_torch(message), SITES)
    assert list(translator.to_message(torch.ones(2, 3).half()).spec.shape) == [2, 3]
    with pytest.raises(InvalidInput, match="register a bundle"):
        translator.to_message(torch.zeros(200_000, 3, dtype=torch.float64))


def test_flex_arrays() -> None:
    translator = CoordinateTranslator()
    vectors = flex.vec3_double(flex.double(SITES.ravel()))
    np.testing.assert_array_equal(translator.to_torch(vectors), SITES)
    assert list(translator.to_flex(torch.tensor(SITES))) == list(vectors)
    assert list(translator.to_numpy(flex.double([1.0, 2.0]))) == [1.0, 2.0]
    with pytest.raises(InvalidInput, match="vec3_double is"):
        translator.to_flex(SITES.ravel())


@pytest.mark.parametrize("source", ["text", [object()], np.array(["a"]), None])
def test_what_is_no_numbers_is_refused(source: object) -> None:
    with pytest.raises(InvalidInput):
        CoordinateTranslator().to_torch(source)


def test_damaged_message_is_refused() -> None:
    message = CoordinateTranslator().to_message(SITES)
    message.data = message.data[:-1]
    with pytest.raises(InvalidInput, match="needs 120 bytes") as raised:
        CoordinateTranslator().to_torch(message)
    assert raised.value.reason == "TENSOR_TRUNCATED"


def test_atom37_there_and_back() -> None:
    assert len(ATOM37) == len(set(ATOM37)) == 37
    mask = torch.rand(4, 37) > 0.5
    places = torch.rand(2, 4, 37, 3, requires_grad=True)
    flat = from_atom37(places, mask)
    assert flat.shape == (2, int(mask.sum()), 3)
    torch.testing.assert_close(to_atom37(flat, mask), places * mask[..., None])
    flat.sum().backward()
    torch.testing.assert_close(places.grad, mask[..., None].expand(2, 4, 37, 3).float())
    with pytest.raises(InvalidInput, match="mask is"):
        from_atom37(places, mask[:, :36])
    with pytest.raises(InvalidInput, match="is due"):
        from_atom37(places[:, :3], mask)
    with pytest.raises(InvalidInput, match="atoms"):
        to_atom37(flat[:, 1:], mask)


def test_bundles(mesh: Mesh, peptide: Model) -> None:
    translator = CoordinateTranslator(torch.float32)
    assert translator.get_memory_usage().bundles == 0
    path = wheel_file(PDB_1YJP)
    name = translator.register_bundle(mesh, path)
    assert name == translator.register_bundle(mesh, wheel_bytes(PDB_1YJP), kind="macromolecule")
    torch.testing.assert_close(translator.load_bundle(mesh, name), sites_of(peptide).float())
    batch = torch.rand(2, 66, 3)
    loaded = translator.load_bundle(mesh, translator.register_bundle(mesh, batch))
    torch.testing.assert_close(loaded, batch, rtol=0, atol=0)
    usage = translator.get_memory_usage()
    assert (usage.bundles, usage.bytes) == (2, 4 * 3 * (66 + 2 * 66))
    assert usage.bytes_by_device == {"cpu": usage.bytes}
    loaded.zero_()
    kept = translator.load_bundle(mesh, translator.register_bundle(mesh, batch))
    torch.testing.assert_close(kept, batch)
    reflections = translator.register_bundle(mesh, wheel_file(MTZ_7N2L))
    with pytest.raises(InvalidInput, match="kind reflections"):
        translator.load_bundle(mesh, reflections)
    with pytest.raises(InvalidInput, match="coordinates are"):
        translator.register_bundle(mesh, torch.zeros(3))
    translator.clear()
    assert translator.get_memory_usage().bytes == 0


def test_the_client_does_without_torch() -> None:
    code = """
import sys
import bxmesh.client
assert "torch" not in sys.modules
sys.modules["torch"] = None
try:
    import bxmesh.client.torch
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bxmesh[torch]'" in done.stdout
