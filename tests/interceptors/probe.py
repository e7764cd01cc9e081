"""A server with one method, whose handler a test gives, and a call to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from bxmesh.client.tracing import tracing_interceptors
from bxmesh.geometry.v1.bundle_pb2 import BundleChunk
from bxmesh.server.interceptors import (
    AuthenticationInterceptor,
    Authenticator,
    Authorizer,
    admins_only,
    server_interceptors,
)
from bxmesh.server.security.admin_key import AdminKeyAuthenticator

KEY = "bx_admin_" + "k" * 43
AUTHORIZED = (("authorization", f"Bearer {KEY}"),)
METHOD = "probe.v1.Probe/Call"

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def probe(
    kind: str,
    handler: Callable[..., Any],
    *,
    add: Sequence[Callable[[grpc.aio.Server], None]] = (),
    traced_client: bool = False,
    authenticator: Authenticator | None = None,
    authorizer: Authorizer | None = None,
    socket: Path | None = None,
) -> AsyncIterator[tuple[Any, grpc.aio.Channel]]:
    """Serves a handler of a kind, such as unary_stream, of BundleChunk messages.

    Yields what calls it, and the channel; `add` adds further services; the server listens on
    `socket`, by default one of its own.
    """
    server = grpc.aio.server(
        interceptors=server_interceptors(
            AuthenticationInterceptor(
                [authenticator or AdminKeyAuthenticator(KEY)], authorizer or admins_only
            )
        ),
        options=[("grpc.so_reuseport", 0)],
    )
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    method = make(handler, BundleChunk.FromString, BundleChunk.SerializeToString)
    service, name = METHOD.split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: method}),)
    )
    for add_service in add:
        add_service(server)
    with TemporaryDirectory() as folder:
        address = f"unix:{socket or Path(folder) / 'probe.sock'}"
        server.add_insecure_port(address)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(
                address, interceptors=tracing_interceptors() if traced_client else None
            ) as channel:
                call = getattr(channel, kind)(
                    f"/{METHOD}", BundleChunk.SerializeToString, BundleChunk.FromString
                )
                yield call, channel
        finally:
            await server.stop(0)
