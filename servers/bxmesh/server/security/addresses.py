"""The addresses of callers: how they are written, and which are refused."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote

from redis.asyncio import Redis

from bxmesh.security.v1.policy_pb2 import IpBlock, Policy
from bxmesh.server.errors import MeshError, permission_denied
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import Background

from .events import AuditEvent, SecurityEvents, ViolationEvent
from .mirror import Mirror
from .policies import Policies
from .records import Change, ConflictError

__all__ = [
    "IP_BLOCK",
    "Addresses",
    "address_of",
    "admitted",
    "is_local",
    "rules_of",
    "source_of",
]

IP_BLOCK = "ip_block"
"""The kind of records that say which addresses are refused for a while."""

_log = logging.getLogger(__name__)

_ABUSE = "bxmesh:{security}:abuse"
_GATHER_SECONDS = 0.25
_MOST_DECISIONS = 10_000
_MOST_BLOCKS = 100_000
_MOST_COUNTED = 10_000
_MOST_SWEPT = 1_000
# What one host on an IPv6 network has to itself.
_IPV6_PREFIX = 64


class Rule(NamedTuple):
    """Who is admitted or refused."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    allow: bool


@lru_cache(4096)
def address_of(peer: str) -> str:
    """Returns the address in gRPC's name of a peer, such as ipv4:192.0.2.1:5000; `unix` for a
    socket on this machine. What a caller says of itself in headers counts for nothing."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    text = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@lru_cache(4096)
def is_local(address: str) -> bool:
    """Whether an address is on this machine: it is never refused, so that operators get back in.

    Behind a proxy on this machine every caller is: such a proxy has to refuse by itself.
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.startswith("unix")


@lru_cache(4096)
def source_of(address: str) -> str:
    """Returns what stands for whoever calls from an address: it itself, for IPv6 the first address
    of its /64, of which one host may use all."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4 or parsed.is_loopback:
        return str(parsed)
    network = ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False)
    return str(network.network_address)


def rules_of(policy: Policy) -> list[Rule]:
    """Returns the rules of a policy on addresses."""
    return [
        Rule(ipaddress.ip_network(rule.network, strict=False), rule.allow)
        for rule in policy.ip_rules
    ]


def admitted(rules: Sequence[Rule], address: str) -> bool:
    """Whether rules admit an address: the first that fits decides, none means admitted."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    return next((rule.allow for rule in rules if parsed in rule.network), True)


class Addresses(Background):
    """Refuses addresses by the rules of the policy, and for a while those that break many rules.

    The latter by what `source_of` returns: a block of 2001:db8:: is one of 2001:db8::/64. An async
    context manager, within which it counts.
    """

    def __init__(self, redis: Redis, mirror: Mirror, policies: Policies) -> None:
        self._redis = redis
        self._mirror = mirror
        self._policies = policies
        self._rules: list[Rule] = []
        self._decisions: dict[str, bool] = {}
        self._counts: Counter[str] = Counter()
        self._news = asyncio.Event()
        self.events: SecurityEvents | None = None
        policies.on_change(self._read)
        self._read()

    def _read(self) -> None:
        self._rules = rules_of(self._policies.policy)
        self._decisions.clear()

    def refusal(self, address: str) -> MeshError | None:
        """Returns why an address is refused now, None when it is not."""
        if not self._rules and not self._mirror.all(IP_BLOCK):
            return None
        if is_local(address):
            return None
        block = self.block(address)
        if block is not None:
            seconds = max(1.0, block.expire_time.seconds - time.time())
            error = permission_denied(
                f"Calls from {address} are refused for a while: {block.reason}.",
                reason="ADDRESS_BLOCKED",
                address=address,
            )
            error.retry_after = seconds
            return error
        if not self._admitted(address):
            return permission_denied(
                f"Calls from {address} are not admitted to this mesh.",
                reason="ADDRESS_REFUSED",
                address=address,
            )
        return None

    def _admitted(self, address: str) -> bool:
        decision = self._decisions.get(address)
        if decision is None:
            if len(self._decisions) >= _MOST_DECISIONS:
                self._decisions.clear()
            decision = self._decisions[address] = admitted(self._rules, address)
        return decision

    def block(self, address: str) -> IpBlock | None:
        """Returns what refuses an address for a while now."""
        record = self._mirror.get(IP_BLOCK, source_of(address))
        block = IpBlock.FromString(record.data) if record else None
        return block if block and block.expire_time.seconds > time.time() else None

    def blocks(self) -> list[IpBlock]:
        """Returns what is refused for a while now, by address."""
        found = (self.block(address) for address in sorted(self._mirror.all(IP_BLOCK)))
        return [block for block in found if block is not None]

    def violated(self, event: ViolationEvent) -> None:
        """Counts a violation against the address it came from."""
        counted = self._policies.policy.abuse_block.violations > 0
        if not counted or not event.address or is_local(event.address):
            return
        source = source_of(event.address)
        if source in self._counts or len(self._counts) < _MOST_COUNTED:
            self._counts[source] += 1
            self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._news.clear()
            counts, self._counts = self._counts, Counter()
            try:
                for source, count in counts.items():
                    # Another server may be faster.
                    with suppress(ConflictError):
                        await self._count(source, count)
            except (MeshError, *REDIS_ERRORS) as error:
                _log.warning("violations are not counted by address: %s", error)

    async def _count(self, source: str, count: int) -> None:
        rule = self._policies.policy.abuse_block
        if not rule.violations or self.block(source) is not None:
            return
        name = f"{_ABUSE}:{source}"
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.incrby(name, count)
        pipeline.expire(name, max(1, rule.window.seconds), nx=True)
        total, _ = await pipeline.execute()
        if total < rule.violations:
            return
        over = self._over(source)
        if len(self._mirror.all(IP_BLOCK)) - len(over) >= _MOST_BLOCKS:
            return
        await self._redis.delete(name)
        block = IpBlock(
            address=source,
            reason=f"{total} violations within {rule.window.seconds} s",
        )
        block.create_time.GetCurrentTime()
        block.expire_time.FromSeconds(
            block.create_time.seconds + max(1, rule.block_duration.seconds)
        )
        before = self._mirror.get(IP_BLOCK, source)
        known = before.revision if before else 0
        await self._mirror.commit(
            [Change(IP_BLOCK, source, known, block.SerializeToString()), *over]
        )
        if self.events is not None:
            self.events.note(
                AuditEvent(
                    "ip_block.created",
                    address=source,
                    resource=f"address/{source}",
                    details={"reason": block.reason},
                )
            )

    def _over(self, source: str) -> list[Change]:
        """What deletes blocks that are over, but not that of a source."""
        names = islice(self._mirror.all(IP_BLOCK), _MOST_SWEPT)
        return [
            Change(IP_BLOCK, name, -1, None)
            for name in names
            if name != source and self.block(name) is None
        ]
