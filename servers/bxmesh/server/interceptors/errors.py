"""What a caller sees of an error."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any, NoReturn

import grpc
import pydantic
from grpc_status import rpc_status
from opentelemetry import trace

from .. import telemetry
from ..activity import OFF, Activity
from ..errors import MeshError, internal, unimplemented
from ._wrap import Call, Interceptor, Proceed

__all__ = ["TRACE_ID_KEY", "ErrorsInterceptor"]

TRACE_ID_KEY = "bxmesh-trace-id"

_log = logging.getLogger(__name__)


class ErrorsInterceptor(Interceptor):
    """Answers whatever a handler raises with a rich status that carries the trace id.

    What is not a MeshError becomes INTERNAL; its stack trace goes to the log alone.
    """

    def __init__(self, activity: Activity = OFF) -> None:
        """Tells an activity log of faults of the server."""
        self._activity = activity

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Turns what the handler raises into a rich status."""
        try:
            return await proceed()
        except MeshError as error:
            await self._abort(call, error, _trace_id())
        except grpc.aio.AbortError:
            raise
        except pydantic.ValidationError as error:
            await self._abort(call, _from_pydantic(error), _trace_id())
        except NotImplementedError:
            message = f"This server does not offer {call.method} yet."
            await self._abort(
                call, unimplemented(message, reason="METHOD_UNIMPLEMENTED"), _trace_id()
            )
        except (Exception, asyncio.CancelledError) as error:
            # A caller that is gone cancels this task, and fails writes. A cancellation from
            # within, left to itself, would make the caller wait for ever.
            if _caller_is_gone(call):
                raise
            trace.get_current_span().record_exception(error)
            trace_id = _trace_id()
            _log.exception("%s failed, trace %s", call.method, trace_id)
            message = "The server failed to answer this call; its log has the cause."
            await self._abort(call, internal(message), trace_id)

    async def _abort(self, call: Call, error: MeshError, trace_id: str) -> NoReturn:
        self._activity.answered(call.method, error, trace_id)
        status = rpc_status.to_status(error.to_status(trace_id))
        await call.context.abort(
            status.code,
            status.details,
            (
                *(call.context.trailing_metadata() or ()),
                *status.trailing_metadata,
                (TRACE_ID_KEY, trace_id),
            ),
        )
        raise AssertionError("abort returned")


def _caller_is_gone(call: Call) -> bool:
    task = asyncio.current_task()
    return call.context.cancelled() or (task is not None and task.cancelling() > 0)


def _trace_id() -> str:
    return telemetry.current_trace_id() or secrets.token_hex(16)


def _from_pydantic(error: pydantic.ValidationError) -> MeshError:
    violations = [
        (".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()
    ]
    field, description = violations[0]
    return MeshError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        f"{field}: {description}" if field else description,
        field_violations=violations,
    )
