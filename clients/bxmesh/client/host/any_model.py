"""An agent that answers in conversations with whatever model a question names."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

from google.protobuf import json_format

from bxmesh.client.agents.failures import Unhandled
from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.conversations.question import ASKED, LANGUAGE_MODEL
from bxmesh.client.host.behaviours import Behaviour
from bxmesh.client.host.conversing import question_of
from bxmesh.client.host.failures import refused
from bxmesh.client.host.model import ModelBehaviour
from bxmesh.client.host.models import Models
from bxmesh.client.host.work import Reply, Work
from bxmesh.client.mesh import AsyncMesh
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["AnyModelBehaviour"]

_AT_A_TIME = 256
_KEPT = 64
# Others reach into the request: they could name another model, or add headers.
_SETTINGS = frozenset(
    {
        "frequency_penalty",
        "parallel_tool_calls",
        "presence_penalty",
        "seed",
        "stop_sequences",
        "thinking",
        "top_k",
    }
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class AnyModelBehaviour(Behaviour):
    """Answers questions with the models that a host lends; the first when none is named."""

    def __init__(self, mesh: AsyncMesh, host: str, lent: Mapping[str, str], models: Models) -> None:
        """Takes the names of the models, each with the base URL of its server, empty for its
        provider's own."""
        definition = pb.AgentDefinition(
            definition_id=f"models-{_NOT_IN_NAMES.sub('-', host)}"[:128], version=1
        )
        definition.capabilities.add(name=LANGUAGE_MODEL)
        definition.limits.max_concurrent_tasks = _AT_A_TIME
        super().__init__(mesh, definition)
        self._lent = dict(lent)
        self._models = models
        self._kept: OrderedDict[bytes, ModelBehaviour] = OrderedDict()

    async def answer(self, work: Work) -> Reply:
        """Lets the model that the question names answer it. Raises BxmeshError."""
        if work.type != ASKED:
            raise Unhandled(f"work of the type {work.type}", work.figures.agent_id)
        settings = pb.ModelSettings()
        try:
            json_format.ParseDict(question_of(work).model or {}, settings)
        except json_format.ParseError as error:
            raise PayloadMismatch(f"model: {error}") from None
        if not settings.model:
            settings.model = next(iter(self._lent))
        # Whoever asks says neither what this host pays for nor where it sends its keys.
        url = self._lent.get(settings.model)
        if url is None or settings.base_url not in ("", url):
            raise refused(
                "MODEL_NOT_LENT",
                f"this host lends {', '.join(self._lent)}, not {settings.model} {settings.base_url}",
            )
        if refusals := settings.extra.keys() - _SETTINGS:
            raise refused(
                "MODEL_NOT_LENT",
                f"this host lends models with {', '.join(sorted(_SETTINGS))}, not with "
                f"{', '.join(sorted(refusals))}",
            )
        settings.base_url = url
        return await self._behaviour(settings).answer(work)

    def _behaviour(self, settings: pb.ModelSettings) -> ModelBehaviour:
        key = settings.SerializeToString(deterministic=True)
        behaviour = self._kept.pop(key, None)
        if behaviour is None:
            definition = pb.AgentDefinition(
                definition_id=self.definition.definition_id, model=settings
            )
            behaviour = ModelBehaviour(self.mesh, definition, self._models)
        self._kept[key] = behaviour
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return behaviour
