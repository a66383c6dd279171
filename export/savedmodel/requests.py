"""The values that a generation passes along, in either framework's tensors.

B rows   S new tokens   C cache slots   N tokens generated in one call   V vocabulary
L layers   H heads
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from ...models.generation.modifiers import Marks
from ...models.generation.sampling_params import SamplingParams


class GenerateRequest(NamedTuple):
    """What the loop of ``generate_{N}`` starts from."""

    input_ids: Any  # [B,S] int32; S = 1 in a compiled loop: the prompt's last token
    input_length: Any  # [B] int32
    cache: Any  # [B,C,L,2,H,·] as the wire carries it
    cache_length: Any  # [B] int32
    max_new_tokens: Any  # [B] int32, at most N
    marks: Marks  # of the history, the stop tokens and the bias
    sampling: SamplingParams


def request_spec(
    rows: int | None, S: int | None, cache: tf.TensorSpec, V: int
) -> GenerateRequest:
    """The request of a model with V ids as specifications of tensors."""

    def spec(dtype: str, *shape: int | None) -> tf.TensorSpec:
        return tf.TensorSpec([rows, *shape], dtype)

    vector, real = spec("int32"), spec("float32")
    return GenerateRequest(
        input_ids=spec("int32", S),
        input_length=vector,
        cache=cache,
        cache_length=vector,
        max_new_tokens=vector,
        marks=Marks(
            counts=spec("int32", V),
            stops=spec("bool", V),
            bias=spec("float32", V),
            modified=spec("bool"),
        ),
        sampling=SamplingParams(
            seed=spec("int32", 2),
            temperature=real,
            top_k=vector,
            top_p=real,
            repetition_penalty=real,
            min_p=real,
            presence_penalty=real,
            frequency_penalty=real,
            min_new_tokens=vector,
            top_logprobs=vector,
        ),
    )


class DecodeState(NamedTuple):
    """What the loop carries from step to step."""

    step: Any  # int32: steps done
    token: Any  # [B] int32, fed next
    alive: Any  # [B] boolean
    tokens: Any  # [B,N] int32, −1 where there is none
    logprobs: Any  # [B,N] float32
    top_ids: Any  # [B,N,5] int32
    top_logprobs: Any  # [B,N,5] float32
    counts: Any  # [B,V] int32: as the marks', with the tokens generated
    new_kv: Any  # keys and values of the new rows; their order is the graph's own


class Generated(NamedTuple):
    """What the loop returns."""

    tokens: Any  # [B,N] int32, −1 after a row's end
    logprobs: Any  # [B,N] float32
    count: Any  # [B] int32
    new_cache: Any  # [B,S+N−1,L,2,H,·] as the wire carries it
    top_ids: Any  # [B,N,5] int32, −1 where not asked for
    top_logprobs: Any  # [B,N,5] float32
