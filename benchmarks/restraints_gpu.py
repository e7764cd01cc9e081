"""Restraints of one model at many coordinates on a GPU: conformers a second, and memory bandwidth.

Needs PyTorch, NumPy and the client alone, no mesh and no cctbx. What it is given is made once, with a mesh:

    import numpy as np
    from bxmesh.client import Mesh

    with Mesh() as mesh:
        model = mesh.create_model("AF_json_v3.pdb", include_atoms=True)
        mesh.restraints(model).save("model.npz")
        np.save("sites.npy", model.atoms.sites)

`AF_json_v3.pdb`, of 2641 atoms, is in the wheel `cctbx-base`: `mmtbx/regression/pdbs/`. Then:

    python benchmarks/restraints_gpu.py model.npz sites.npy [--samples 64] [--compile]

A conformer is its energy and gradient. Two counts of bytes are set against what a copy in the same run
moves: the least that can be (coordinates, gradients, restraints and pairs once each), and that of kernels
without a cache, which read each atom of each restraint and add to its gradient. Without a GPU the figures are
those of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bxmesh.client.torch import RestraintModule
from bxmesh.restraints import Restraints

Energies = Callable[[Tensor], Tensor]

PLACES = 4
STILL, MOVING = 0.02, 0.5


def main() -> None:
    options = parsed()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    restraints = Restraints.load(options.restraints)
    sites = torch.tensor(np.load(options.sites), device=device)
    copied = copy_bandwidth(device)
    print(f"{described(device)}; a copy moves {copied / 1e9:.0f} GB/s")
    print(f"{restraints.n_atoms} atoms, B={options.samples}, energies and gradients")
    for dtype in (torch.float32, torch.float64):
        still, moving = (
            jittered(sites.to(dtype), options.samples, jitter) for jitter in (STILL, MOVING)
        )
        module = RestraintModule(restraints).to(device)
        runs: list[tuple[str, Energies, list[Tensor]]] = [
            ("neighbours kept", module, still),
            ("neighbours anew", module, moving),
        ]
        if options.compile:
            runs.append(("compiled", torch.compile(module, fullgraph=True), moving))
        for what, called, places in runs:
            seconds = timed(stepping(called, places), device, options.calls)
            shares = [
                each / seconds / copied for each in bytes_moved(module, restraints, places[0])
            ]
            print(
                f"{str(dtype).removeprefix('torch.')}, {what}: {1e3 * seconds:.2f} ms, "
                f"{options.samples / seconds:.0f} conformers/s, bandwidth: {shares[0]:.2%} by the "
                f"least bytes, {shares[1]:.2%} without a cache"
            )
    if device.type == "cuda":
        print(f"Memory at most: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("restraints", type=Path, help="npz of the restraints")
    parser.add_argument("sites", type=Path, help="npy of coordinates [N, 3] in Å")
    parser.add_argument("--samples", type=int, default=64, help="B")
    parser.add_argument("--calls", type=int, default=20, help="how many are timed")
    parser.add_argument("--compile", action="store_true", help="also compiled, after a minute")
    return parser.parse_args()


def described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"No GPU here: a processor, {torch.get_num_threads()} threads"


def jittered(sites: Tensor, samples: int, jitter: float) -> list[Tensor]:
    generator = torch.Generator(sites.device).manual_seed(0)
    shape = (samples, *sites.shape)
    return [
        sites
        + jitter * torch.randn(shape, generator=generator, device=sites.device, dtype=sites.dtype)
        for _ in range(PLACES)
    ]


def stepping(module: Energies, places: list[Tensor]) -> Callable[[int], None]:
    """Returns what evaluates one of the places after the other."""

    def step(number: int) -> None:
        leaf = places[number % len(places)].detach().requires_grad_()
        module(leaf).sum().backward()

    return step


def timed(step: Callable[[int], object], device: torch.device, calls: int) -> float:
    """Returns the median time of a call in seconds, after some that do not count."""
    times = []
    for number in range(PLACES + calls):
        wait(device)
        start = time.perf_counter()
        step(number)
        wait(device)
        times.append(time.perf_counter() - start)
    return median(times[PLACES:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device) -> float:
    """Returns how many bytes a second are read and written by a copy."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda _: target.copy_(source), device, 10)


def bytes_moved(module: RestraintModule, restraints: Restraints, places: Tensor) -> tuple[int, int]:
    """Returns the least bytes that one call can move, and those of kernels without a cache."""
    samples, pairs = len(places), int(module.evaluate(places).pairs.sum())
    vector = 3 * places.element_size()
    members = sum(
        restraints[name].size
        for name in restraints.tensors
        if name.endswith("_atoms") and name.split("_")[0] not in ("special", "close")
    )
    listed = 2 * 8 + 8  # two numbers of atoms and a distance
    tables = sum(restraints[name].nbytes for name in restraints.tensors)
    least = samples * restraints.n_atoms * 2 * vector + pairs * listed + tables
    visits = samples * members + 2 * pairs
    return least, visits * 3 * vector + pairs * listed + tables


if __name__ == "__main__":
    main()
