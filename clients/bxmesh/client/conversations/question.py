"""What an agent is asked in a conversation, and what it may answer: JSON, as tasks carry it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "ASKED",
    "FINAL",
    "LANGUAGE_MODEL",
    "MOST_ITEMS",
    "MOST_NAME",
    "MOST_TEXT",
    "AgentAnswer",
    "Question",
    "Said",
]

ASKED = "conversation.answer"
"""The type of the tasks that are questions."""
LANGUAGE_MODEL = "language_model"
"""The capability of agents that answer with whatever model a question names."""

FINAL = (
    "EXTRA_MISSING",
    "MODEL_KEY_REFUSED",
    "MODEL_NOT_CONFIGURED",
    "MODEL_NOT_LENT",
    "MODEL_REJECTED",
    "OUTPUT_INVALID",
    "PAYLOAD_MISMATCH",
    "TOKEN_LIMIT",
    "TOOL_LIMIT",
    "TOOL_UNKNOWN",
)
"""Why agents have no answer and are not asked again: no repetition cures it, or it costs its tokens
twice."""
MOST_TEXT = 65_536
"""The characters of an answer."""
MOST_ITEMS = 64
"""The candidates that an answer puts in order, and the pieces of evidence that it names."""
MOST_NAME = 256
"""The characters of a language model's name."""


Kind: TypeAlias = Literal["answer", "rank", "judge"]
"""What is asked for."""


class Said(BaseModel):
    """What was said before."""

    turn: int
    """The turn."""
    participant_id: str = ""
    """Who said it; empty for whoever asks the question."""
    text: str
    """What."""


class Question(BaseModel):
    """One participant's part in one turn."""

    model_config = ConfigDict(extra="ignore")

    kind: Kind = "answer"
    """To answer, to put the candidates in order, or to choose one of them."""
    conversation_id: str
    """The conversation."""
    participant_id: str
    """Who is asked."""
    turn: int
    """The turn, from 1."""
    message: str
    """The question of the conversation."""
    instructions: str = ""
    """How to answer: the character and what the conversation says beyond that."""
    earlier: list[Said] = []
    """What was said in earlier turns, the oldest first; of very long ones only the latest."""
    candidates: list[str] = []
    """What to put in order or to choose from."""
    bundle_ids: list[str] = []
    """What the conversation is about."""
    method: str = "majority"
    """How one answer will come out: majority, weighted, ranked, judge, numeric or structured."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema that answers fit; None for any."""
    model: dict[str, Any] | None = None
    """The settings of the language model that shall answer; None to leave that to the agent."""


class AgentAnswer(BaseModel):
    """What a participant answers. Text or a number alone does as well."""

    model_config = ConfigDict(extra="ignore")

    text: Annotated[str, Field(max_length=MOST_TEXT)] = ""
    """In words."""
    answer: Any = None
    """As data, which the consensus goes by; None to let it go by the text."""
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    """How sure it is."""
    ranking: Annotated[list[int], Field(max_length=MOST_ITEMS)] = []
    """The candidates by number from 0, the best first."""
    choice: int | None = None
    """The candidate that is chosen, by number from 0."""
    evidence: Annotated[
        list[Annotated[str, Field(max_length=1024)]], Field(max_length=MOST_ITEMS)
    ] = []
    """What it rests on: bundle ids, figures."""
    model: Annotated[str, Field(max_length=MOST_NAME)] = ""
    """The language model that answered."""
    input_tokens: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Tokens read."""
    output_tokens: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Tokens written."""

    @classmethod
    def of(cls, result: Any) -> AgentAnswer:
        """Returns what an agent's result says. Raises ValueError for what is no answer."""
        if isinstance(result, str):
            found = {"text": result}
        elif isinstance(result, dict) and result.keys() & cls.model_fields.keys():
            found = result
        elif result is None:
            raise ValueError("it is empty")
        else:
            found = {"answer": result}
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{place}: {problem['msg']}") from None
