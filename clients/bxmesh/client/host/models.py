"""Language models by name: made when they are needed, once, over one HTTP client."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bxmesh.client.errors import FailedPrecondition
from bxmesh.client.host.failures import refused
from bxmesh.registry.v1 import agent_definition_pb2 as pb

if TYPE_CHECKING:
    from pydantic_ai.models import Model
    from pydantic_ai.providers import Provider

__all__ = ["ModelSource", "Models", "extra_missing"]

ModelSource = Mapping[str, Any] | Callable[[str], Any]
"""Models of pydantic-ai by the names that definitions have for them; what it lacks is made."""

_NO_KEY = "none"


class Models:
    """The models of one host."""

    def __init__(self, given: ModelSource | None = None, servers: Iterable[str] = ()) -> None:
        self._servers = frozenset(servers)
        self._given: Callable[[str], Any] = given if callable(given) else (given or {}).get
        self._made: dict[tuple[str, str], Model] = {}
        self._http: Any = None
        # Behaviours are made in threads.
        self._making = threading.Lock()

    def get(self, settings: pb.ModelSettings) -> Model:
        """Returns the model of a name and server; raises FailedPrecondition with what is missing."""
        if (model := self._given(settings.model)) is not None:
            found: Model = model
            return found
        key = (settings.model, settings.base_url)
        with self._making:
            if key not in self._made:
                self._made[key] = self._make(*key)
            return self._made[key]

    def _make(self, name: str, base_url: str) -> Model:
        try:
            from openai import OpenAIError
            from pydantic_ai.exceptions import UserError
            from pydantic_ai.models import infer_model
        except ModuleNotFoundError as error:
            raise extra_missing(error) from error
        try:
            if base_url:
                return self._compatible(name.partition(":")[2], base_url)
            return infer_model(name, self._provider)
        except (OpenAIError, UserError, ValueError, ImportError) as error:
            # Their messages tell the variable or the package that is missing.
            raise refused("MODEL_NOT_CONFIGURED", f"{name} cannot be used here: {error}") from error

    def _provider(self, name: str) -> Provider[Any]:
        from pydantic_ai.providers import infer_provider, infer_provider_class
        from pydantic_ai.providers.openai import OpenAIProvider

        if infer_provider_class(name) is OpenAIProvider:
            return OpenAIProvider(openai_client=self._client())
        return infer_provider(name)

    def _compatible(self, name: str, base_url: str) -> Model:
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        if self._servers and base_url not in self._servers:
            raise refused("MODEL_NOT_CONFIGURED", f"this host asks no models at {base_url}")
        # The keys of providers are not for whatever server a definition names.
        host = re.sub(r"\W", "_", urlsplit(base_url).hostname or "").upper()
        api_key = os.environ.get(f"BXMESH_MODEL_KEY_{host}", _NO_KEY)
        client = self._client(base_url, api_key)
        return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))

    def _client(self, base_url: str | None = None, api_key: str | None = None) -> Any:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        if self._http is None:
            self._http = DefaultAsyncHttpxClient()
        return AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=self._http)

    async def close(self) -> None:
        """Closes the HTTP client."""
        if self._http is not None:
            await self._http.aclose()


def extra_missing(error: ModuleNotFoundError) -> FailedPrecondition:
    """Returns the error for a package that is not installed."""
    return refused("EXTRA_MISSING", f"this host lacks {error.name}: pip install 'bxmesh[host]'")
