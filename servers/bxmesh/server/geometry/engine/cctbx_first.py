"""Refuses to load cctbx where that would end the process: import this before cctbx.

grpc, numba and cctbx each bring a C++ runtime. With another's loaded first, cctbx crashes on import;
the other way round all work. A process that needs them imports `engine.model` before the others.
"""

import sys

_OTHERS = {"grpc._cython.cygrpc": "grpc", "llvmlite.binding.ffi": "numba"}

for module, name in _OTHERS.items():
    if module in sys.modules and "boost_python_meta_ext" not in sys.modules:
        raise ImportError(
            f"cctbx cannot be loaded after {name}: import bxmesh.server.geometry.engine.model first"
        )
