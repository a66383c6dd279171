"""Plain TensorFlow ops and programs of JAX in one graph, each where it is quicker.

XLA multiplies one row at the speed of memory, whatever the weights' type. For several
rows it converts int8 and bfloat16 first, and oneDNN is twice as fast or more where the
processor multiplies them itself; with float32 it is one and a half times as fast, but
for prompts of a page or less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from .autotune import Answer
from .backend_jax import JaxBackend
from .backend_tf import TFBackend
from .backends import Backend
from .buckets import Sizes
from .loop_jax import JaxLoop
from .matmul_tf import either
from .programs_jax import stored_once
from .prompts import after_prompt
from .requests import Generated, GenerateRequest


class MixedBackend:
    """Programs up to some rows and tokens, plain ops beyond where they are quicker.

    Args:
        plain: takes any sizes.
        loop: of ``generate_{N}``, as programs for some numbers of rows.
        programs: for all but the loop; None leaves it to ``plain``.
        few: sizes up to which programs are the quicker on every processor.
        plain_is_quicker: beyond them, on the processor that a version is loaded on.
        resources: what is found out when it is.
    """

    def __init__(
        self,
        plain: TFBackend,
        loop: JaxLoop,
        programs: JaxBackend | None,
        *,
        few: Sizes,
        plain_is_quicker: Answer,
        resources: Mapping[str, Any],
    ) -> None:
        self._plain, self._loop, self._programs = plain, loop, programs
        self._few, self._plain_is_quicker = few, plain_is_quicker
        self.compiled = programs.compiled if programs else Sizes()
        self.compiled_loop = loop.sizes
        self.resources = resources
        self.extend = plain.extend
        if programs is not None:
            self.extend = stored_once(self._extend, *plain.extend.input_signature)

    def _extend(self, ids, cache, cache_length):
        rows, size = tf.unstack(tf.shape(ids))
        few = (rows <= self._few.rows[-1]) & (size <= self._few.prompt[-1])
        return self._either(few, lambda it: it.extend(ids, cache, cache_length))

    def logits(self, hidden):
        """Hidden states [B,W] → [B,V]."""
        few = tf.shape(hidden)[0] <= self._few.rows[-1]
        return self._either(few, lambda it: it.logits(hidden))

    def full_logits(self, ids, mask):
        """Logits [B,S,V] of padded rows."""
        return self._either(False, lambda it: it.full_logits(ids, mask))

    def scores(self, ids, hidden):
        """Logits [B,S,V], and log-probabilities [B,S] of the tokens that follow."""
        return self._either(False, lambda it: it.scores(ids, hidden))

    def generate(self, request: GenerateRequest, N: int, *, often: bool) -> Generated:
        """Up to N tokens for each row."""
        few = tf.shape(request.input_ids)[0] <= self._few.rows[-1]
        return either(
            self._by_programs(few),
            lambda: after_prompt(request, N, self.extend, self._loop.generate),
            lambda: self._plain.generate(request, N, often=often),
        )

    def _either(self, few: Any, call: Callable[[Backend], Any]):
        programs = self._programs
        if programs is None:
            return call(self._plain)
        by_programs = self._by_programs(few)
        return either(by_programs, lambda: call(programs), lambda: call(self._plain))

    def _by_programs(self, few: Any):
        quicker = self._plain_is_quicker.read()
        return few if quicker is True else few | ~quicker
