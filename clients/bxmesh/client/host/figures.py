"""What the agents of a host have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

__all__ = ["AgentFigures"]


@dataclass
class AgentFigures:
    """The figures of one agent since its host started."""

    agent_id: str
    """The agent."""
    definition_id: str
    """What it runs."""
    version: int = 0
    """The version of it that new work gets."""
    messages: int = 0
    """Messages that ended, however they did."""
    tasks: int = 0
    """Tasks that ended, however they did."""
    failed: int = 0
    """Of both, those that failed."""
    seconds: float = 0.0
    """Time at work, together."""
    tool_calls: int = 0
    """Functions and capabilities that were called."""
    input_tokens: int = 0
    """Tokens that models were given."""
    output_tokens: int = 0
    """Tokens that models answered."""
    cache_hits: int = 0
    """Times that the model of the version was there already."""

    def copy(self) -> AgentFigures:
        """Returns the figures as they are now."""
        return replace(self)

    def facts(self) -> dict[str, str]:
        """Returns what heartbeats tell: the version, and what is not nothing."""
        counts = {
            name: value for name, value in asdict(self).items() if isinstance(value, float | int)
        }
        counts.pop("version")
        return {"definition_version": str(self.version)} | {
            name: f"{value:.6g}" for name, value in counts.items() if value
        }
