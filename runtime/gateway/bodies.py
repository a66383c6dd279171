"""Bodies of requests, as OpenAI's API and vLLM's additions to it have them.

A field that isn't here is refused with a sentence, never ignored. None stands for a
field's default, as clients send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..printable import sentence
from .api_errors import ApiError

Token = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Tokens = Annotated[list[Token], Field(min_length=1)]
MOST_PROMPTS = 2048
Prompts = (
    str
    | Tokens
    | Annotated[list[str | Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
)
Stops = str | Annotated[list[str], Field(max_length=16)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
B = TypeVar("B", bound="Body")
MOST_CHOICES = 128


class Body(BaseModel):
    """What all have in common: no unknown fields, and None means the default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


class StreamOptions(Body):
    """What a stream tells besides its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampled(Body):
    """How tokens are chosen, in completions and in chats alike."""

    model: str = ""
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: Stops = []
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    logit_bias: Annotated[
        dict[
            Annotated[int, Field(ge=0, lt=2**31)],
            Annotated[float, Field(ge=-100, le=100)],
        ],
        Field(max_length=1024),
    ] = {}
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] = []
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    user: Annotated[str, Field(max_length=256)] = ""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    return_token_ids: bool = False

    @property
    def stops(self) -> list[str]:
        """``stop`` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CompletionBody(Sampled):
    """``POST /v1/completions``."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    add_special_tokens: bool = True


class Message(Body):
    """One turn of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as text; OpenAI's clients may send it in parts."""
        if isinstance(self.content, str):
            return self.content
        parts = []
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ApiError(
                    400,
                    "a message's content may hold text only: this model reads nothing "
                    "else",
                    param="messages",
                )
            parts.append(part["text"])
        return "".join(parts)


class ChatBody(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=5)] = 0


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    model: str = ""
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: Annotated[str, Field(max_length=256)] = ""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0


class TokenizeBody(Body):
    """``POST /tokenize``."""

    model: str = ""
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """``POST /detokenize``."""

    model: str = ""
    tokens: list[Token]


def one_by_one(prompts: Prompts) -> list[str | list[int]]:
    """Each prompt by itself: a list of ids is one."""
    if isinstance(prompts, str):
        return [prompts]
    ids = [item for item in prompts if isinstance(item, int)]
    return [ids] if ids else [item for item in prompts if not isinstance(item, int)]


def read_body(kind: type[B], data: bytes) -> B:
    """A request's body.

    Raises:
        ApiError: 400 that names the field and says what is wrong with it.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"][:1]) or None
    if first["type"] == "extra_forbidden":
        message = f"{field} is not supported here: leave it out"
    elif first["type"] == "json_invalid":
        message = "the body is not valid JSON: send a JSON object"
    else:
        message = f"{field or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    raise ApiError(400, sentence(message)[:400], param=field)
