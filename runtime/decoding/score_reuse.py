"""Scored texts and the prefix cache: what one begins with, and what it leaves there.

A block's scores lie beside its rows, under a key made of the block's hash: they, too,
follow from its tokens and those before it.
"""

from __future__ import annotations

from hashlib import sha256

from ..contract import TOP_LOGPROBS
from .kv_cache import KVCache
from .prefix_cache import BLOCK, PrefixCache, block_hashes
from .prefix_reuse import block_shape, known_blocks
from .scored_text import ScoredText
from .served_model import ServedModel
from .task import Task

_PLAIN = 1, b"logprobs"
_WITH_TOP = 1 + 2 * TOP_LOGPROBS, b"logprobs and likeliest tokens"
"""Numbers that are kept for each token, and what tells their keys apart."""


def reuse(
    text: ScoredText,
    model: ServedModel,
    prefixes: PrefixCache | None,
    deadline: float | None,
    *,
    top: int,
) -> Task[None]:
    """Begin a text after the longest prefix whose rows and scores are known.

    Looked for once. The last known token is fed again, for the scores of the next.
    """
    identity = model.rows_identity
    if prefixes is None or not identity or text.sought_prefix:
        return
    text.sought_prefix = True
    width, kind = _WITH_TOP if top else _PLAIN
    hashes = block_hashes(identity, text.tokens[:-1])
    keys = [_key(block, kind) for block in hashes]
    scores = yield from known_blocks(keys, (BLOCK, width), prefixes, deadline)
    hashes = hashes[: len(scores)]
    rows = yield from known_blocks(hashes, block_shape(model), prefixes, deadline)
    if len(rows) * BLOCK > text.known:
        cache = KVCache(model.layout, tuple(rows))
        text.begin_after(cache, scores[: len(rows)], identity)


def remember(
    text: ScoredText, model: ServedModel, prefixes: PrefixCache | None
) -> None:
    """Keep the rows and the scores of a text that has been scored to its end."""
    identity, cache = model.rows_identity, text.cache
    replaced = text.model_id not in ("", model.model_id)
    if prefixes is None or cache is None or not identity or replaced:
        return
    hashes = block_hashes(identity, text.tokens[: text.cached])
    hashes = hashes[: prefixes.holds(BLOCK * model.layout.row_bytes)]
    rows, scores = {}, {}
    for i, block in enumerate(hashes):
        begin, end = i * BLOCK, (i + 1) * BLOCK
        if not prefixes.has(block):
            rows[block] = cache.rows(begin, end)
        for width, kind in (_PLAIN, _WITH_TOP):
            key, numbers = _key(block, kind), text.numbers(begin, end)
            if numbers.shape[1] >= width and not prefixes.has(key):
                scores[key] = numbers[:, :width].copy()
    prefixes.keep(rows)
    prefixes.keep(scores)


def is_kept(text: ScoredText, model: ServedModel, prefixes: PrefixCache | None) -> bool:
    """Whether ``remember`` needs the rows of tokens that are still to be fed."""
    if prefixes is None or not model.rows_identity:
        return False
    return (len(text.tokens) - 1) // BLOCK > text.cached // BLOCK


def _key(block: bytes, kind: bytes) -> bytes:
    return sha256(block + kind).digest()
