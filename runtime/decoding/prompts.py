"""Prompts as callers give them: one, a list of them, or a padded batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..errors import InvalidRequest
from ..options import Prompt


def as_list(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts as a list; text alone is one prompt.

    Raises:
        InvalidRequest: a mapping, or token ids that are not in a list of their own.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        raise InvalidRequest(
            "prompts must be a list of texts or of id lists, got a dict"
        )
    listed = list(prompts)
    if any(isinstance(p, int | np.integer) for p in listed):
        raise InvalidRequest(
            "prompts must be a list of prompts, got a list of token ids: "
            "put it into a list of its own"
        )
    return listed


def unpadded(input_ids: np.ndarray, attention_mask: np.ndarray) -> list[list[int]]:
    """Prompts of a padded batch (left, right, or both), padding taken out.

    Args:
        input_ids, attention_mask: ``[B, S]``; the mask is 1 where a token counts.
    """
    ids, mask = np.asarray(input_ids), np.asarray(attention_mask)
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise InvalidRequest(
            "input_ids and attention_mask must have one shape [B, S], got "
            f"{ids.shape} and {mask.shape}"
        )
    return [
        [int(i) for i in row[keep != 0]] for row, keep in zip(ids, mask, strict=True)
    ]
