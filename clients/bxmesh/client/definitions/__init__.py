"""Definitions: agents as data, which hosts run as ordinary agents of the mesh."""

from bxmesh.client.definitions.calls import AsyncDefinitions
from bxmesh.client.definitions.options import Content, DefinitionOptions
from bxmesh.client.definitions.parts import DefinitionLimits, ModelSettings, Rule, Tool
from bxmesh.client.definitions.stored import Definition, DefinitionEvent, DefinitionState

__all__ = [
    "AsyncDefinitions",
    "Content",
    "Definition",
    "DefinitionEvent",
    "DefinitionLimits",
    "DefinitionOptions",
    "DefinitionState",
    "ModelSettings",
    "Rule",
    "Tool",
]
