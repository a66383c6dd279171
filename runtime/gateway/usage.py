"""How many tokens a request took, as OpenAI's API tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import Chunk, Generation
from .bodies import StreamOptions


def usage(prompt: int, results: Sequence[Generation], *, each: int) -> dict[str, Any]:
    """Of a whole request.

    Args:
        prompt: of its prompts, each counted once.
        results: ``each`` for every prompt; what their prompts had in the prefix cache
            is their mean.
    """
    new = sum(len(result.tokens) for result in results)
    cached = sum(result.cached_prompt_tokens for result in results) // each
    return {
        **_tokens(prompt, new),
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def usage_so_far(options: StreamOptions, chunk: Chunk) -> dict[str, Any]:
    """The field of one event: of its choice until now, where that is asked for
    (vLLM's ``continuous_usage_stats``); null where the last event will have it."""
    if options.continuous_usage_stats:
        return {"usage": _tokens(chunk.prompt_tokens, chunk.generation_tokens)}
    return {"usage": None} if options.include_usage else {}


def _tokens(prompt: int, new: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
    }
