"""Chains: graphs of stored functions, capabilities and agents that the mesh runs to their end."""

from bxmesh.client.chains.calls import AsyncChains, ChainSource
from bxmesh.client.chains.chain import Chain, ChainStep
from bxmesh.client.chains.runs import ChainChange, ChainFailed, ChainRun, RunState, StepRun

__all__ = [
    "AsyncChains",
    "Chain",
    "ChainChange",
    "ChainFailed",
    "ChainRun",
    "ChainSource",
    "ChainStep",
    "RunState",
    "StepRun",
]
