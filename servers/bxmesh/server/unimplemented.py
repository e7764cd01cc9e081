"""Services of the contract on a server; what they do not implement answers UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from bxmesh.server.errors import unimplemented

__all__ = ["offer"]


class ServiceModule(Protocol):
    """A generated `…_service_pb2` module, which describes one service."""

    DESCRIPTOR: FileDescriptor


def offer(server: grpc.aio.Server, module: ServiceModule, servicer: object = None) -> str:
    """Adds the service of a module to a server and returns its full name.

    RPCs that the servicer does not define answer UNIMPLEMENTED (METHOD_NOT_OFFERED), whatever the
    request holds; without a servicer these are all.
    """
    (service,) = module.DESCRIPTOR.services_by_name.values()
    handlers = {method.name: _handler(method, servicer) for method in service.methods}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service.full_name, handlers),)
    )
    return service.full_name


def _handler(method: MethodDescriptor, servicer: object) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour = getattr(servicer, method.name, None)
    # Generated base classes have all methods, which raise NotImplementedError.
    if behaviour is None or behaviour.__module__.endswith("_pb2_grpc"):
        return _refusal(method.full_name)
    kind = ("stream" if method.client_streaming else "unary") + (
        "_stream" if method.server_streaming else "_unary"
    )
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(
        behaviour,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _refusal(name: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(requests: object, context: object) -> NoReturn:
        raise unimplemented(
            f"{name} is part of the contract but not offered by this version.",
            reason="METHOD_NOT_OFFERED",
        )

    # On the wire one message is a stream of one. What is never read is never validated either, so
    # that an incomplete request is not first asked to be completed.
    return grpc.stream_stream_rpc_method_handler(refuse)
