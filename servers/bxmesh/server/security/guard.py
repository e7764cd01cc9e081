"""The security of one server, put together: who is let in, what is told, what is kept to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from bxmesh.security.v1.violation_pb2 import SEVERITY_CRITICAL, VIOLATION_KIND_FORGERY
from bxmesh.server.activity import OFF, Activity
from bxmesh.server.interceptors import (
    AuthenticationInterceptor,
    Interceptor,
    server_interceptors,
)
from bxmesh.server.interceptors.limits import AddressInterceptor, LimitsInterceptor
from bxmesh.server.settings import Settings
from bxmesh.server.streams.ending import end_tasks

from . import mesh_key
from .addresses import Addresses, address_of
from .admin_key import AdminKeyAuthenticator
from .api_keys import ApiKeyAuthenticator
from .audit import AuditLog
from .authorization import authorize
from .certificate_identity import CertificateAuthenticator
from .circuit_breakers import CircuitBreakers
from .data_loss import DataGuard
from .directory import Directory
from .events import ViolationEvent
from .kinds import KINDS
from .mesh import SecurityMesh
from .message_rules import MessageRules
from .mirror import Mirror
from .policies import Policies
from .quotas import Quotas
from .rate_limits import RateLimiter
from .recorder import Recorder, tell_forged_entry
from .records import Records
from .signatures import Signatures
from .stream_quota import StreamQuota
from .token_keys import TokenKeys
from .tokens import TokenAuthenticator, Tokens
from .usage import Usage
from .violations import Violations

__all__ = ["Guard", "guard"]


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands before the services of a server."""

    mesh: SecurityMesh
    authentication: AuthenticationInterceptor
    before: tuple[Interceptor, ...]
    after: tuple[Interceptor, ...]
    rules: MessageRules
    data: DataGuard
    circuits: CircuitBreakers
    signatures: Signatures
    quotas: Quotas

    def interceptors(self, activity: Activity = OFF) -> list[Interceptor]:
        """Returns the interceptors of a server, outermost first."""
        return server_interceptors(
            self.authentication, activity, before=self.before, after=self.after
        )


@asynccontextmanager
async def guard(settings: Settings, redis: Redis, admin_key: str) -> AsyncIterator[Guard]:
    """Keeps a server's guard within a block. Raises what Redis and the mesh key's file raise."""
    key = await asyncio.to_thread(mesh_key.load_or_create, settings.mesh_key_path)
    async with (
        Mirror(Records(redis, key), KINDS) as mirror,
        AuditLog(
            redis, key, settings.state_dir / "audit-checkpoints.jsonl", settings.audit_days
        ) as log,
        Usage(redis) as usage,
    ):
        directory = Directory(mirror, usage.used)
        policies = Policies(mirror)
        token_keys = TokenKeys(mirror, key, settings.token_key_days)
        violations = Violations(redis, key)
        async with (
            Addresses(redis, mirror, policies) as addresses,
            Recorder(log, violations, addresses.violated) as recorder,
            StreamQuota(redis, policies) as stream_quota,
        ):
            addresses.events = recorder
            mirror.on_forged = partial(_tell_forged, recorder)
            settings.seals.on_forged = partial(tell_forged_entry, recorder)
            circuits = CircuitBreakers(redis, policies, recorder)
            mesh = SecurityMesh(
                settings=settings,
                redis=redis,
                key=key,
                mirror=mirror,
                directory=directory,
                events=recorder,
                policies=policies,
                addresses=addresses,
                usage=usage,
                audit_log=log,
                violations=violations,
                tokens=Tokens(token_keys, key),
                token_keys=token_keys,
                open_circuits=circuits.open_targets,
            )
            authentication = AuthenticationInterceptor(
                [
                    ApiKeyAuthenticator(directory, mirror),
                    TokenAuthenticator(token_keys, directory, mirror, settings.token_audiences),
                    AdminKeyAuthenticator(admin_key),
                ],
                authorize,
                certificates=CertificateAuthenticator(directory),
                events=recorder,
                count=usage.called,
                address_of=address_of,
            )
            mirror.on_change(authentication.look)
            watch = asyncio.create_task(authentication.watch())
            try:
                yield Guard(
                    mesh,
                    authentication,
                    before=(AddressInterceptor(addresses, recorder),),
                    after=(
                        LimitsInterceptor(RateLimiter(redis, policies), stream_quota, recorder),
                    ),
                    rules=MessageRules(policies, recorder),
                    data=DataGuard(policies, recorder),
                    circuits=circuits,
                    signatures=Signatures(redis, directory, policies, recorder),
                    quotas=Quotas(policies, directory.roles_of, recorder),
                )
            finally:
                await end_tasks(watch)


def _tell_forged(recorder: Recorder, kind: str, name: str) -> None:
    recorder.violation(
        ViolationEvent(
            VIOLATION_KIND_FORGERY,
            SEVERITY_CRITICAL,
            rule="FORGED_RECORD",
            message="A security record in Redis has no seal of this mesh and is left out.",
            resource=f"{kind}/{name}",
        )
    )
