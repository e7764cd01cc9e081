"""The mesh for LangGraph: calculations as nodes, and what agents offer as tools.

Needs the extra `langgraph`: pip install 'bxmesh[langgraph]'.
"""

try:
    import langchain_core  # noqa: F401
    import langgraph.graph  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("langchain_core", "langgraph", "langgraph.graph"):
        raise
    raise ModuleNotFoundError(
        "bxmesh.client.langgraph needs LangGraph, which is not installed: "
        "pip install 'bxmesh[langgraph]'",
        name=error.name,
    ) from error

from bxmesh.client.langgraph.nodes import (
    gradients_node,
    minimize_node,
    model_node,
    validate_node,
)
from bxmesh.client.langgraph.state import MeshState
from bxmesh.client.langgraph.tools import mesh_tools, tool_node

__all__ = [
    "MeshState",
    "gradients_node",
    "mesh_tools",
    "minimize_node",
    "model_node",
    "tool_node",
    "validate_node",
]
