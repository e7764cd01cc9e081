"""The RPCs on violations, and the report."""

from __future__ import annotations

import asyncio

import grpc

from bxmesh.security.v1 import violation_pb2 as pb
from bxmesh.server.errors import MeshError, invalid_argument, resource_exhausted
from bxmesh.server.interceptors import current_identity
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.pages import token_of, token_place
from bxmesh.server.streams.connection import redis_errors

from .mesh import SecurityMesh
from .mutations import Context
from .report import security_report
from .violations import fits

__all__ = ["ViolationRpcs"]

_DEFAULT_SIZE = 100
_PAGE = 500
# So many are looked at for one page; what does not fit makes it shorter.
_MOST_LOOKED_AT = 20_000
_WAIT_MS = 1_000
_BOOKMARK_SECONDS = 10.0
_SLOW_CONSUMER_SECONDS = 30.0


class ViolationRpcs:
    """ListViolations, WatchViolations and GetSecurityReport."""

    _mesh: SecurityMesh
    _streams: OpenStreams

    async def ListViolations(
        self, request: pb.ListViolationsRequest, context: Context
    ) -> pb.ListViolationsResponse:
        """Lists a page of violations, newest first; it may be shorter than asked for."""
        start = token_place(request)
        if start and not start.isdigit():
            raise invalid_argument("page_token", "is none", reason="PAGE_TOKEN_INVALID")
        revision, looked_at = int(start or 0), 0
        most = request.page_size or _DEFAULT_SIZE
        answer = pb.ListViolationsResponse()
        while True:
            with redis_errors():
                found, following = await self._mesh.violations.before(revision, _PAGE)
            for violation in found:
                if len(answer.violations) == most:
                    last = answer.violations[-1].revision
                    answer.next_page_token = token_of(request, str(last))
                    return answer
                if fits(violation, request.filter):
                    answer.violations.append(violation)
            looked_at += _PAGE
            revision = following
            if not following:
                return answer
            if looked_at >= _MOST_LOOKED_AT:
                answer.next_page_token = token_of(request, str(following))
                return answer

    async def WatchViolations(self, request: pb.WatchViolationsRequest, context: Context) -> None:
        """Follows violations until the caller cancels."""
        violations, clock = self._mesh.violations, asyncio.get_running_loop().time
        async with self._streams.stream():
            with redis_errors():
                revision = request.after_revision or await violations.revision()
            await _send(context, pb.WatchViolationsResponse(revision=revision))
            next_bookmark = clock() + _BOOKMARK_SECONDS
            while True:
                with redis_errors():
                    found = await violations.after(revision, _PAGE)
                if found is None:
                    raise _compacted(revision)
                fresh = [each for each in found[0] if fits(each, request.filter)]
                moved, revision = found[1] != revision, found[1]
                if fresh or (moved and clock() > next_bookmark):
                    await _send(
                        context, pb.WatchViolationsResponse(violations=fresh, revision=revision)
                    )
                    next_bookmark = clock() + _BOOKMARK_SECONDS
                if not moved:
                    with redis_errors():
                        await violations.wait(revision, _WAIT_MS)

    async def GetSecurityReport(
        self, request: pb.GetSecurityReportRequest, context: Context
    ) -> pb.GetSecurityReportResponse:
        """Sums up a period, of oneself without a permission."""
        caller = current_identity()
        if request.identity_id != caller.id:
            caller.require("audit_read")
        with redis_errors():
            return await security_report(self._mesh, request)


async def _send(context: Context, response: pb.WatchViolationsResponse) -> None:
    try:
        async with asyncio.timeout(_SLOW_CONSUMER_SECONDS):
            await context.write(response)
    except TimeoutError:
        raise resource_exhausted(
            f"Nothing has been read for {_SLOW_CONSUMER_SECONDS:g} s. Resume the watch.",
            retry_after=0.0,
            reason="SLOW_CONSUMER",
            subject="watch",
        ) from None


def _compacted(revision: int) -> MeshError:
    return MeshError(
        grpc.StatusCode.OUT_OF_RANGE,
        "REVISION_COMPACTED",
        f"The violations after revision {revision} are not kept any more. Begin again at 0.",
        metadata={"after_revision": str(revision)},
    )
