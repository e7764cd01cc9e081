"""The records of the security service in Redis: sealed, versioned, and changed several at once.

A record is bytes under a kind and a name. Each commit is atomic, has a revision, and tells every
server at once. The seal (HMAC-SHA256 under the mesh key over kind, name, revision and bytes) keeps
whoever can only write to Redis from making records up; to bring back an old one whole it does not.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.scripts import Script

from .mesh_key import MeshKey

__all__ = ["EVENTS", "Change", "ConflictError", "ForgedRecordError", "Memo", "Record", "Records"]

_ROOT = "bxmesh:{security}"
EVENTS = f"{_ROOT}:events"
"""The stream of commits; the id of an entry is `<revision>-0`, its values are `kind:name`."""
_REVISION = f"{_ROOT}:revision"
_MOST_EVENTS = 10_000
_REMEMBER_MS = 3_600_000
_SEAL_BYTES = 32
_TRIES = 20

# KEYS: revision, events, memo, then the hash of each change
# ARGV: ms to remember (0: no memo), answer, revision that is to be made, then for each change its
#       kind, name, revision as known (-1: whatever), and sealed record or ""
# Returns {0, answer of before} | {1} made | {-1, present revision} the next revision is another |
# {-2, number of the change} one of the records is not as known.
_COMMIT = Script(f"""
local memo = tonumber(ARGV[1]) > 0 and redis.call('GET', KEYS[3])
if memo then return {{0, memo}} end
local latest = tonumber(redis.call('GET', KEYS[1]) or 0)
if latest + 1 ~= tonumber(ARGV[3]) then return {{-1, latest}} end
for i = 4, #KEYS do
  local at = 4 + 4 * (i - 4)
  local known = tonumber(ARGV[at + 2])
  if known >= 0 then
    local packed = redis.call('HGET', KEYS[i], ARGV[at + 1])
    local revision = packed and cmsgpack.unpack(packed)[1] or 0
    if revision ~= known then return {{-2, i - 4}} end
  end
end
redis.call('SET', KEYS[1], ARGV[3])
local names = {{}}
for i = 4, #KEYS do
  local at = 4 + 4 * (i - 4)
  if ARGV[at + 3] == '' then
    redis.call('HDEL', KEYS[i], ARGV[at + 1])
  else
    redis.call('HSET', KEYS[i], ARGV[at + 1],
      cmsgpack.pack({{tonumber(ARGV[3]), ARGV[at + 3]}}))
  end
  names[#names + 1] = i
  names[#names + 1] = ARGV[at] .. ':' .. ARGV[at + 1]
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', {_MOST_EVENTS}, ARGV[3] .. '-0', unpack(names))
if tonumber(ARGV[1]) > 0 then redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[1]) end
return {{1}}
""")

# KEYS: a hash; ARGV: a name. Returns {} or {revision, sealed record}.
_GET = Script("""
local packed = redis.call('HGET', KEYS[1], ARGV[1])
return packed and cmsgpack.unpack(packed) or {}
""")


class ConflictError(Exception):
    """A record is not as it was known: somebody else was faster. `change` says which."""

    def __init__(self, change: Change) -> None:
        super().__init__(f"{change.kind} {change.name} is not at revision {change.known}")
        self.change = change


class ForgedRecordError(Exception):
    """A record in Redis has no seal of this mesh: it was made by somebody without its key."""


class Record(NamedTuple):
    """A record as it stands."""

    revision: int
    data: bytes


class Change(NamedTuple):
    """What a commit does to a record."""

    kind: str
    """Such as identity, role, api_key."""
    name: str
    known: int
    """The revision it replaces: 0 when there is none, -1 whatever it is."""
    data: bytes | None
    """The new content, None to delete it; never empty."""


class Memo(NamedTuple):
    """By whom and for what a mutation was asked, to know it again when it is repeated."""

    identity_id: str
    method: str
    request_id: str
    """Empty means that it is not remembered."""


class Records:
    """Reads and commits. Methods raise what Redis raises."""

    def __init__(self, redis: Redis, key: MeshKey) -> None:
        self._scripts = ScriptBatcher(redis)
        self._redis = redis
        self._seal_key = key.derive("bxmesh security records")

    async def revision(self) -> int:
        """Returns the revision of the last commit, 0 before the first."""
        return int(await self._redis.get(_REVISION) or 0)

    async def get(self, kind: str, name: str) -> Record | None:
        """Returns a record; raises ForgedRecordError."""
        found = await self._scripts.call(_GET, (_hash(kind),), (name,))
        return self._open(kind, name, *found) if found else None

    async def names(self, kind: str) -> list[str]:
        """Returns the names of all records of a kind."""
        names: Any = await self._redis.hkeys(_hash(kind))
        return [name.decode() for name in names]

    async def remembered(self, memo: Memo) -> tuple[int, bytes] | None:
        """Returns the revision and the answer of a mutation that was made before."""
        if not memo.request_id:
            return None
        sealed: Any = await self._redis.get(_memo_key(memo))
        return None if sealed is None else self._first(_memo_key(memo), sealed)

    async def commit(
        self, changes: Sequence[Change], memo: Memo | None = None, answer: bytes = b""
    ) -> tuple[int, bytes | None]:
        """Makes all of the changes or none.

        Returns the new revision; when the mutation was made before, its revision and the answer
        to it, and nothing is changed. Raises ConflictError.
        """
        remember = memo is not None and bool(memo.request_id)
        memo_key = _memo_key(memo) if memo is not None and remember else f"{_ROOT}:request"
        revision = await self.revision() + 1
        for _ in range(_TRIES):
            arguments: list[str | bytes | int] = [
                _REMEMBER_MS if remember else 0,
                self._seal("memo", memo_key, 0, revision.to_bytes(8) + answer),
                revision,
            ]
            for change in changes:
                sealed = b"" if change.data is None else self._seal_change(change, revision)
                arguments += [change.kind, change.name, change.known, sealed]
            keys = (_REVISION, EVENTS, memo_key, *(_hash(change.kind) for change in changes))
            match await self._scripts.call(_COMMIT, keys, arguments):
                case [0, first]:
                    return self._first(memo_key, first)
                case [1]:
                    return revision, None
                case [-1, latest]:
                    # Somebody else has made the next one; the seal holds its number.
                    revision = latest + 1
                case [-2, number]:
                    raise ConflictError(changes[number])
        raise ConflictError(changes[0])

    async def events(
        self, after: int, block_ms: int
    ) -> list[tuple[int, list[tuple[str, str]]]] | None:
        """Waits for commits after a revision; returns them with kinds and names, in order.

        Returns None when they are not kept any more: read everything anew.
        """
        oldest: Any = await self._redis.xrange(EVENTS, count=1)
        latest = await self.revision()
        if latest < after or (
            latest > after and (not oldest or _revision(oldest[0][0]) > after + 1)
        ):
            return None
        answer: Any = await self._redis.xread({EVENTS: f"{after}-0"}, count=1000, block=block_ms)
        entries = answer[0][1] if answer else []
        return [
            (_revision(entry_id), [_kind_and_name(value) for value in fields.values()])
            for entry_id, fields in entries
        ]

    def _first(self, memo_key: str, sealed: bytes) -> tuple[int, bytes]:
        data = self._unseal("memo", memo_key, 0, sealed)
        return int.from_bytes(data[:8]), data[8:]

    def _seal_change(self, change: Change, revision: int) -> bytes:
        assert change.data is not None
        return self._seal(change.kind, change.name, revision, change.data)

    def _seal(self, kind: str, name: str, revision: int, data: bytes) -> bytes:
        return self._mac(kind, name, revision, data) + data

    def _open(self, kind: str, name: str, revision: int, sealed: bytes) -> Record:
        return Record(revision, self._unseal(kind, name, revision, sealed))

    def _unseal(self, kind: str, name: str, revision: int, sealed: bytes) -> bytes:
        seal, data = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._mac(kind, name, revision, data)):
            raise ForgedRecordError(f"{kind} {name} in Redis has no seal of this mesh")
        return data

    def _mac(self, kind: str, name: str, revision: int, data: bytes) -> bytes:
        head = f"{kind}\0{name}\0{revision}\0".encode()
        return hmac.digest(self._seal_key, head + data, "sha256")


def _hash(kind: str) -> str:
    return f"{_ROOT}:{kind}"


def _memo_key(memo: Memo) -> str:
    return f"{_ROOT}:request:{memo.identity_id}:{memo.method}:{memo.request_id}"


def _revision(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def _kind_and_name(value: bytes) -> tuple[str, str]:
    kind, _, name = value.decode().partition(":")
    return kind, name
