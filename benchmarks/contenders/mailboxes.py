"""Our mailboxes: so many messages, posted, taken and acknowledged in one process. Prints them per second."""

import asyncio
import os
import sys
import time

from bxmesh.agent.v1.message_pb2 import Envelope, JsonPayload, Payload
from bxmesh.server.streams import connect
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.mailboxes import MESSAGE, Mailboxes, topic

AGENT = "bench"
MOST = 200


async def main(url: str, items: int) -> None:
    redis = connect(url)
    mailboxes = Mailboxes(redis)
    room = asyncio.Semaphore(100)

    async def add(number: int) -> None:
        message = Envelope(
            message_type="empty", payload=Payload(json=JsonPayload(json=str(number)))
        )
        async with room:
            await mailboxes.put(AGENT, MESSAGE, message)

    async def run(bells: Bells) -> None:
        settlement = mailboxes.settlement("connection")
        done = 0
        handling: set[asyncio.Task[None]] = set()

        async def handle(held: HeldEntry) -> None:
            nonlocal done
            message = Envelope()
            held.item.payload.Unpack(message)
            await mailboxes.acknowledge(settlement, held)
            done += 1

        async with bells.watch(topic(AGENT)) as bell:
            while done < items:
                bell.clear()
                most = MOST - len(handling)
                if most <= 0:
                    await asyncio.wait(handling, return_when=asyncio.FIRST_COMPLETED)
                    continue
                taken = await mailboxes.take(AGENT, "connection", most, bells.channel)
                for held in taken:
                    task = asyncio.create_task(handle(held))
                    handling.add(task)
                    task.add_done_callback(handling.discard)
                if not taken:
                    await (asyncio.wait(handling) if handling else bell.wait(1.0))

    async with Bells(redis) as bells:
        await mailboxes.attach(AGENT, "connection", "lease", bells.channel)
        keeper = asyncio.create_task(mailboxes.maintenance.run())
        began = time.perf_counter()
        await asyncio.gather(*map(add, range(items)), run(bells))
        print(items / (time.perf_counter() - began), flush=True)
        assert keeper
    os._exit(0)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
