"""The calls around agents without asyncio."""

from __future__ import annotations

from typing import TypeVar

from bxmesh.client.agents.calls import AgentCalls
from bxmesh.client.blocking import Blocking, blocking, iterating

__all__ = ["BlockingAgentCalls"]

Target = TypeVar("Target", bound=AgentCalls)


class BlockingAgentCalls(Blocking[Target]):
    """What a mesh offers around agents; see AgentCalls."""

    agents = blocking(AgentCalls.agents)
    agent = blocking(AgentCalls.agent)
    discover = blocking(AgentCalls.discover)
    select_agent = blocking(AgentCalls.select_agent)
    watch_agents = iterating(AgentCalls.watch_agents)
    send = blocking(AgentCalls.send)
    request = blocking(AgentCalls.request)
    broadcast = blocking(AgentCalls.broadcast)
    assign_task = blocking(AgentCalls.assign_task)
    task = blocking(AgentCalls.task)
    watch_task = iterating(AgentCalls.watch_task)
    wait_for_task = blocking(AgentCalls.wait_for_task)
    tasks = iterating(AgentCalls.tasks)
    cancel_task = blocking(AgentCalls.cancel_task)
    task_stats = blocking(AgentCalls.task_stats)
    state = blocking(AgentCalls.state)
    update_state = blocking(AgentCalls.update_state)
    watch_state = iterating(AgentCalls.watch_state)
    dead_letters = iterating(AgentCalls.dead_letters)
    replay_dead_letters = blocking(AgentCalls.replay_dead_letters)
    purge_dead_letters = blocking(AgentCalls.purge_dead_letters)
    replay_messages = blocking(AgentCalls.replay_messages)
    queue_stats = iterating(AgentCalls.queue_stats)
