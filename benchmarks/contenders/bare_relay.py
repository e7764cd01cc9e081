"""A gRPC server that publishes what it is sent with redis-py, and streams what it hears: two gRPC hops and
one hop of publish and subscribe, with nothing else. Takes the URL of Redis and its own address."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from redis.asyncio import Redis

CHANNEL = "bench-relay"


async def main(url: str, address: str) -> None:
    redis = Redis.from_url(url)

    async def send(request: bytes, context: Any) -> bytes:
        await redis.publish(CHANNEL, request)
        return b""

    async def listen(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async with redis.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            while True:
                message = await channel.get_message(timeout=10.0)
                if message is not None:
                    yield message["data"] if message["type"] == "message" else b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "Relay",
                {
                    "Send": grpc.unary_unary_rpc_method_handler(send),
                    "Listen": grpc.unary_stream_rpc_method_handler(listen),
                },
            ),
        )
    )
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


asyncio.run(main(sys.argv[1], sys.argv[2]))
