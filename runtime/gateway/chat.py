"""``POST /v1/chat/completions``: a conversation made one prompt by a template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidRequest
from ..results import Generation, TopLogprobs
from .api_errors import ApiError, bad_field
from .bodies import ChatBody
from .choices import Choice, Runner, choices, truncated
from .completions import Json
from .served import Served
from .usage import usage, usage_so_far


class ChatTemplate:
    """A Jinja template as Hugging Face's tokenizers have it, run in a sandbox.

    It sees ``messages``, ``add_generation_prompt`` and the tokens ``bos_token`` and
    ``eos_token``.

    Raises:
        InvalidRequest: it isn't a template.
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template is wrong: {error}") from None

    def text(self, body: ChatBody, served: Served) -> str:
        """The conversation as one text; raises ``ApiError``."""
        eos = served.piece(served.manifest.eos_token_id)
        messages = [
            {"role": m.role, "content": m.text} | ({"name": m.name} if m.name else {})
            for m in body.messages
        ]
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                bos_token="",
                eos_token=eos,
            )
        except jinja2.TemplateError as error:
            raise ApiError(
                400, f"the chat template refuses this: {error}", param="messages"
            ) from None


class Chat:
    """One request and the answers to it; see ``Completion``."""

    @classmethod
    async def of(
        cls,
        body: ChatBody,
        template: ChatTemplate | None,
        served: Served,
        runner: Runner,
        user: str,
    ) -> Chat:
        """Makes one prompt of the conversation; raises as ``Completion.of``."""
        if template is None:
            raise ApiError(
                400,
                "this gateway has no chat template: start it with --chat-template "
                "FILE, or use /v1/completions",
                code="no_chat_template",
            )
        if body.top_logprobs and not body.logprobs:
            raise bad_field("top_logprobs", "top_logprobs needs logprobs: true")
        runner.check(body, body.n)
        prompt = await served.encode(template.text(body, served))
        return cls(body, prompt, served, runner, user)

    def __init__(
        self,
        body: ChatBody,
        prompt: list[int],
        served: Served,
        runner: Runner,
        user: str,
    ) -> None:
        self._body, self._served, self._runner = body, served, runner
        asked = body.max_completion_tokens or body.max_tokens
        self._prompt = truncated(body, prompt, served.positions - (asked or 1))
        most = asked or max(1, served.positions - len(self._prompt))
        top = body.top_logprobs if body.logprobs else 0
        self._choices = choices(
            body,
            served,
            [self._prompt],
            each=body.n,
            max_new_tokens=most,
            top_logprobs=top,
            operation="chat",
            user=user,
        )
        self._head: Json = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": served.name,
        }

    @property
    def wants_stream(self) -> bool:
        """Whether events are asked for rather than one answer."""
        return self._body.stream

    async def whole(self) -> Json:
        """The answer in one piece."""
        results = await self._runner.whole(self._served, self._choices)
        answer = [
            {
                "index": i,
                "message": {"role": "assistant", "content": result.text},
                "logprobs": self._logprobs(
                    result.tokens, result.logprobs, result.top_logprobs
                ),
                "finish_reason": result.finish_reason,
            }
            for i, result in enumerate(results)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": answer,
            "usage": usage(len(self._prompt), results, each=self._body.n),
        }

    async def streamed(self) -> AsyncIterator[Json]:
        """The answer's events: each choice's role first, then its text."""
        results: list[Generation] = []
        for choice in self._choices:
            yield self._event(choice, {"role": "assistant", "content": ""})
        async for event in self._runner.streamed(self._served, self._choices):
            chunk = event.chunk
            told = self._event(
                event.choice,
                {"content": chunk.text},
                self._logprobs(chunk.tokens, chunk.logprobs, chunk.top_logprobs),
                chunk.finish_reason,
            )
            yield {**told, **usage_so_far(self._body.stream_options, chunk)}
            if event.generation:
                results.append(event.generation)
        if self._body.stream_options.include_usage:
            yield {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": usage(len(self._prompt), results, each=self._body.n),
            }

    def _event(
        self,
        choice: Choice,
        delta: Json,
        logprobs: Json | None = None,
        finish_reason: str | None = None,
    ) -> Json:
        content = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return {**self._head, "object": "chat.completion.chunk", "choices": [content]}

    def _logprobs(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        top: Sequence[TopLogprobs],
    ) -> Json | None:
        if not self._body.logprobs:
            return None
        listed = []
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            likeliest = top[i] if i < len(top) else []
            others = [self._token(other, x) for other, x in likeliest]
            listed.append({**self._token(token, logprob), "top_logprobs": others})
        return {"content": listed}

    def _token(self, token: int, logprob: float) -> Json:
        piece = self._served.piece(token)
        return {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}


def _raise(message: Any) -> None:
    """What templates call for a conversation that they can't take."""
    raise jinja2.TemplateError(str(message)[:200])
