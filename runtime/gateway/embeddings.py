"""``POST /v1/embeddings``: the mean of a text's last hidden states."""

from __future__ import annotations

import base64

import numpy as np

from .bodies import EmbeddingBody, one_by_one
from .completions import Json
from .served import Served


async def embeddings(
    body: EmbeddingBody, served: Served, *, timeout: float | None
) -> Json:
    """The answer: a vector of E float32 numbers for each input."""
    texts = [await served.encode(text) for text in one_by_one(body.input)]
    vectors = await served.client.embed(texts, pooled=True, timeout=timeout)
    total = sum(map(len, texts))
    return {
        "object": "list",
        "model": served.name,
        "data": [
            {
                "object": "embedding",
                "index": i,
                "embedding": _encoded(vector, body.encoding_format),
            }
            for i, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }


def _encoded(vector: np.ndarray, form: str) -> str | list[float]:
    """As numbers, or as the base64 of little-endian float32."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]
