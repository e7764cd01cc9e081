"""The first gradient of a model that nobody has seen: upload, build, answer, against the same in process."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.bare import UBF, BareGeometry, prepare_library, wheel_file
from benchmarks.figures import Figure, median, milliseconds
from bxmesh.client import Mesh
from bxmesh.server.embedded import EmbeddedMesh

ROUNDS = 5


def _in_process() -> float:
    """In a fresh process each time, its imports not counted."""
    code = (
        "import time\n"
        "from benchmarks.bare import UBF, BareGeometry, prepare_library\n"
        "prepare_library()\n"
        "began = time.perf_counter()\n"
        "bare = BareGeometry(UBF)\n"
        "bare.gradients(bare.sites)\n"
        "print(time.perf_counter() - began)\n"
    )
    return float(
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    )


def _warm_library() -> float:
    """In a process that has built another model before."""
    began = time.perf_counter()
    bare = BareGeometry(UBF)
    bare.gradients(bare.sites)
    return time.perf_counter() - began


def run() -> list[Figure]:
    prepare_library()
    text = wheel_file(UBF).read_bytes()
    fresh, warm, cold = [], [], []
    with (
        EmbeddedMesh(workers=1) as server,
        Mesh(server.address, state_dir=server.state_dir) as mesh,
    ):
        mesh.agents()
        for number in range(ROUNDS):
            # A remark makes it another file, and so another model.
            content = b"REMARK   2 ROUND %d\n" % number + text
            began = time.perf_counter()
            model = mesh.create_model(content)
            mesh.gradients(model)
            cold.append(time.perf_counter() - began)
            fresh.append(_in_process())
            warm.append(_warm_library())
    return [
        Figure(
            "first gradient of a new model, 2264 atoms, against in process",
            median(cold) / median(fresh),
            at_most=1.3,
            details=milliseconds(median(cold), median(fresh)),
        ),
        Figure(
            "the same against a process that has built models before",
            median(cold) / median(warm),
            details=milliseconds(median(cold), median(warm)),
        ),
    ]
