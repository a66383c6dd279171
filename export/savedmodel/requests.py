"""The values that a generation passes along, in either framework's tensors.

B rows   S new tokens   C cache slots   N tokens made in one call   V vocabulary
L layers   H heads
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...models.generation.sampling import SamplingParams


class GenerateRequest(NamedTuple):
    """What the loop of ``generate_{N}`` starts from."""

    input_ids: Any  # [B,S] int32; S = 1 in a compiled loop: the prompt's last token
    input_length: Any  # [B] int32
    cache: Any  # [B,C,L,2,H,·] as the wire carries it
    cache_length: Any  # [B] int32
    max_new_tokens: Any  # [B] int32, at most N
    stops: Any  # [B,V] boolean: tokens that end a row
    seen: Any  # [B,V] boolean: tokens that the repetition penalty looks at
    sampling: SamplingParams


class DecodeState(NamedTuple):
    """What the loop carries from step to step."""

    step: Any  # int32: steps done
    token: Any  # [B] int32, fed next
    alive: Any  # [B] boolean
    tokens: Any  # [B,N] int32, −1 where there is none
    logprobs: Any  # [B,N] float32
    seen: Any  # [B,V] boolean
    new_kv: Any  # keys and values of the rows made; their order is the graph's own


class Generated(NamedTuple):
    """What the loop returns."""

    tokens: Any  # [B,N] int32, −1 after a row's end
    logprobs: Any  # [B,N] float32
    count: Any  # [B] int32
    new_cache: Any  # [B,S+N−1,L,2,H,·] as the wire carries it
