"""Stored functions: code that is kept in versions and executed in the mesh's sandbox."""

from bxmesh.client.functions.calls import AsyncFunctions
from bxmesh.client.functions.executions import (
    ExecuteOptions,
    Execution,
    ExecutionEvent,
    ExecutionState,
    FunctionFailed,
    FunctionStats,
)
from bxmesh.client.functions.stored import Function, FunctionLimits, FunctionOptions

__all__ = [
    "AsyncFunctions",
    "ExecuteOptions",
    "Execution",
    "ExecutionEvent",
    "ExecutionState",
    "Function",
    "FunctionFailed",
    "FunctionLimits",
    "FunctionOptions",
    "FunctionStats",
]
