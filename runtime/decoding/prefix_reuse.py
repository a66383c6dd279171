"""Sequences and the prefix cache: what one begins with, and what it leaves there."""

from __future__ import annotations

from collections.abc import Sequence as GenericSequence

from .kv_cache import KVCache
from .prefix_cache import BLOCK, PrefixCache, Rows, block_hashes
from .sequence import Sequence
from .served_model import ServedModel
from .task import Task, Wait


def reuse(
    sequence: Sequence, model: ServedModel, prefixes: PrefixCache | None
) -> Task[None]:
    """Begin a sequence after the longest prefix whose rows are known.

    Looked for once for each model. At least one token stays pending: its logits are
    needed. The sequence is not pinned by it, so that it goes to the version served now;
    ``loop.run_step`` drops rows that are of another model than the one that answers.
    """
    identity = model.rows_identity
    if sequence.version is not None or sequence.sought_prefix == identity:
        return
    sequence.sought_prefix = identity
    if sequence.cache is not None:
        sequence.forget()
    if prefixes is None or not identity:
        return
    hashes = block_hashes(identity, sequence.tokens[:-1])
    shape, deadline = block_shape(model), sequence.deadline
    blocks = yield from known_blocks(hashes, shape, prefixes, deadline)
    if blocks:
        sequence.begin_after(KVCache(model.layout, tuple(blocks)))


def known_blocks(
    hashes: GenericSequence[bytes],
    shape: tuple[int, ...],
    prefixes: PrefixCache,
    deadline: float | None,
) -> Task[list[Rows]]:
    """The first blocks, each of ``shape``, as far as memory or the folder has them."""
    blocks = prefixes.find(hashes)
    missing = hashes[len(blocks) :]
    if missing and (future := prefixes.load(missing, shape)):
        loaded = (yield Wait(future, deadline)) or []
        prefixes.keep(dict(zip(missing, loaded, strict=False)), save=False)
        blocks += loaded
    return blocks


def remember(
    sequence: Sequence, model: ServedModel, prefixes: PrefixCache | None
) -> None:
    """Keep the rows of a prompt once it is fed, and of the answer once it has ended.

    Those that a server keeps are fetched at the end (``sessions.read_back``).
    """
    cache, finished = sequence.cache, sequence.finish_reason is not None
    if prefixes is None or not isinstance(cache, KVCache):
        return
    if sequence.model_id not in ("", model.model_id):
        return
    alone = sequence.options.samples == 1 and not sequence.options.beams
    most = len(cache) if finished and alone else sequence.prompt_tokens
    whole = min(most, len(cache)) // BLOCK * BLOCK
    fed = sequence.pending <= 1 or finished
    if not model.rows_identity or not fed or whole <= sequence.remembered:
        return
    begin, sequence.remembered = sequence.remembered, whole
    hashes = block_hashes(model.rows_identity, sequence.tokens[:whole])
    fitting = hashes[: prefixes.holds(BLOCK * model.layout.row_bytes)]
    new = {
        block: cache.rows(i * BLOCK, (i + 1) * BLOCK)
        for i, block in enumerate(fitting)
        if i * BLOCK >= begin and not prefixes.has(block)
    }
    prefixes.keep(new)


def block_shape(model: ServedModel) -> tuple[int, ...]:
    """Of one block's rows."""
    return (BLOCK, *model.layout.row_shape)
