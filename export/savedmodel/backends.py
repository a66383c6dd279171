"""Who computes inside the signatures: TensorFlow ops, or JAX compiled by XLA.

Both offer the same few functions of TensorFlow tensors, so that the signatures are
written once (``signatures.py``). Weights are :class:`tf.Variable` in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .buckets import Sizes
from .requests import Generated, GenerateRequest


class Backend(Protocol):
    """What the signatures call. ``cache`` and new rows are as the wire carries them."""

    compiled: Sizes
    """Which sizes have programs of their own, that warm-up should run, ..."""
    compiled_loop: Sizes
    """... and which the loop of ``generate_{N}`` has."""

    @property
    def resources(self) -> Mapping[str, Any]:
        """What is found out when a version is loaded."""
        ...

    def extend(self, ids: Any, cache: Any, cache_length: Any) -> tuple[Any, Any]:
        """Hidden states [B,S,W] and new rows [B,S,L,2,H,·] of ``ids`` [B,S]."""
        ...

    def logits(self, hidden: Any) -> Any:
        """Hidden states [B,W] → [B,V]."""
        ...

    def full_logits(self, ids: Any, mask: Any) -> Any:
        """Logits [B,S,V] of padded rows; ``mask`` [B,S] as Hugging Face has it."""
        ...

    def scores(self, ids: Any, hidden: Any) -> tuple[Any, Any]:
        """Logits [B,S,V] of ``hidden`` [B,S,W], and log-probabilities [B,S] by them of
        the tokens that follow each of ``ids`` [B,S]."""
        ...

    def generate(self, request: GenerateRequest, N: int, *, often: bool) -> Generated:
        """Up to N tokens for each row.

        ``often`` says that memory is well spent on this signature's speed.
        """
        ...
