"""Refuses to load cctbx where that would end the process: import this before cctbx.

grpc and cctbx each bring a C++ runtime. With grpc's loaded first, cctbx crashes on import; the
other way round both work. A process that needs both imports `engine.model` before grpc.
"""

import sys

if "grpc._cython.cygrpc" in sys.modules and "boost_python_meta_ext" not in sys.modules:
    raise ImportError(
        "cctbx cannot be loaded after grpc: import bxmesh.server.geometry.engine.model first"
    )
