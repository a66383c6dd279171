"""Running the rules on the next token, and a caller's own functions among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...models.generation.logits_processors import LogitsProcessor
from ..errors import InvalidRequest


def apply(
    processors: Sequence[LogitsProcessor], tokens: Sequence[int], logits: np.ndarray
) -> np.ndarray:
    """All of them in order; what a user's function returns is checked.

    Raises:
        InvalidRequest: logits of another shape, or none that is allowed.
    """
    if not processors:
        return logits
    seen = np.asarray(tokens, np.int64)
    out = logits
    for processor in processors:
        out = np.asarray(processor(seen, out), np.float32)
        if out.shape != logits.shape:
            raise InvalidRequest(
                f"a logits processor must return shape {logits.shape}, it returned "
                f"{out.shape}"
            )
    if not np.isfinite(out).any():
        raise InvalidRequest(
            f"the constraints and processors leave no token for slot {len(seen)}: "
            "loosen one of them"
        )
    return out
