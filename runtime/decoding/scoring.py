"""Log-probabilities and hidden states of given texts: one call for several rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..codec import RowBlocks, Tensor
from ..contract import MESSAGE_LIMIT
from ..errors import IncompatibleModel, InvalidRequest, VersionGone
from ..results import Score
from ..transports.base import Call
from .expected_reply import ExpectedReply
from .kv_cache import KVCache
from .model_versions import ModelVersions, answering_model
from .score_reuse import is_kept, remember, reuse
from .scored_text import ScoredText, shared_prefixes
from .served_model import ServedModel
from .task import CallRequest, Task, with_deadline

_LOGITS_LIMIT = 1 << 29
"""Bytes of logits that one call may make a server compute: ``score`` needs those of
every token, and 32 texts of 2048 tokens would be 13 GB."""
_MOST_RESTARTS = 20


@dataclass(frozen=True)
class Limits:
    """What the calls of one request keep to: ``capacity`` rows, and a deadline."""

    versions: ModelVersions
    capacity: int
    deadline: float | None


def score(
    prompts: Sequence[Sequence[int]], limits: Limits, *, top: int = 0
) -> Task[list[Score]]:
    """Each token's log-probability given those before it; NaN for the first.

    Beginnings that texts have in common are computed once, and long texts in chunks,
    where the export's contract version has a cache for it. With ``top`` the likeliest
    tokens of each step are reported, too.
    """
    model = limits.versions.current
    model.require("score", "score()")
    if model.manifest.contract_version < 2:
        if top:
            raise IncompatibleModel(
                "this export is of contract version 1, whose scores have no likeliest "
                "tokens: export the model again, or ask for none (top_logprobs=0)"
            )
        return (yield from _whole_scores(prompts, limits))
    scored: dict[int, ScoredText] = {}
    for length, members in shared_prefixes(prompts):
        texts = [ScoredText(prompts[i]) for i in members]
        if length:
            prefix = ScoredText(prompts[members[0]][:length])
            yield from _score_texts([prefix], limits, top=top, keep=True)
            texts = [prefix.continued(prompts[i]) for i in members]
        yield from _score_texts(texts, limits, top=top)
        for i, text in zip(members, texts, strict=True):
            text.cache = None  # which may be large
            scored[i] = text
    return [scored[i].score(top) for i in range(len(prompts))]


def embed(
    prompts: Sequence[Sequence[int]], limits: Limits, *, pooled: bool = False
) -> Task[list[np.ndarray]]:
    """The last hidden states ``[tokens, E]`` of each prompt, float32, or their means
    ``[E]``."""
    if pooled and limits.versions.current.manifest.contract_version > 1:
        return (yield from _run("embed", "pooled", prompts, limits))
    states = yield from _run("embed", "last_hidden_state", prompts, limits)
    return [x.mean(0) for x in states] if pooled else states


# --- chunk by chunk after a cache -----------------------------------------------------


def _score_texts(
    texts: Sequence[ScoredText], limits: Limits, *, top: int, keep: bool = False
) -> Task[None]:
    """Score all texts to their ends; ``keep`` their caches, for others to go on from.

    Some of them at a time, so that few caches are held.
    """
    versions, restarts = limits.versions, 0
    model, prefixes = versions.current, versions.prefixes
    while waiting := [text for text in texts if text.pending]:
        for text in waiting:
            own = versions.of(text.version)
            yield from reuse(text, own, prefixes, limits.deadline, top=top)
        chosen = next(_groups([text.pending for text in waiting], model, limits))
        group = [waiting[i] for i in chosen]
        while going := [text for text in group if text.pending]:
            try:
                yield from _score_chunks(going, limits, top=top, keep=keep)
            except VersionGone:
                restarts += 1
                if restarts > _MOST_RESTARTS:
                    raise
                for text in going:
                    text.restart()
                yield from with_deadline(versions.learn(), limits.deadline)


def _score_chunks(
    texts: Sequence[ScoredText], limits: Limits, *, top: int, keep: bool
) -> Task[None]:
    """One call with the next chunk of each text that can go with the first one's."""
    version, model_id = texts[0].version, texts[0].model_id
    model, prefixes = limits.versions.of(version), limits.versions.prefixes
    texts = [t for t in texts if (t.version, t.model_id) == (version, model_id)]
    most = model.whole_size(max(model.largest_prompt_chunk, 2))
    size = model.whole_size(min(max(t.pending for t in texts), most))
    cached = model.cache_size(max(t.cached for t in texts))
    goes_on = [
        keep or text.cached + size < len(text.tokens) or is_kept(text, model, prefixes)
        for text in texts
    ]
    # A server prepares a program for each choice of outputs, so there are two.
    outputs = () if top or any(goes_on) else ("logprobs",)
    fits = most_rows(model, size, limits.capacity, cached, new_cache=not outputs)
    texts = texts[:fits]
    chunks = [text.chunk(size) for text in texts]
    inputs = _fed(model, chunks, size)
    rows = inputs["input_ids"].shape[0]
    inputs |= _caches([text.cache for text in texts], model, rows)
    call = _call(model, "score", inputs, outputs, chunks, top=top)
    call = replace(call, version=version, model_id=model_id)
    reply = yield CallRequest(call, limits.deadline)
    model = yield from answering_model(call, reply, limits.versions, limits.deadline)
    for b, (text, chunk) in enumerate(zip(texts, chunks, strict=True)):
        if text.reused_as not in ("", model.rows_identity):
            text.restart()  # a newer version has answered
            continue
        text.version, text.model_id = reply.version, reply.model_id
        row = {name: array[b] for name, array in reply.outputs.items()}
        cache = text.cache or KVCache(model.layout)
        text.take(row, len(chunk), cache if goes_on[b] else None, top=top > 0)
        if not text.pending:
            remember(text, model, prefixes)


def _caches(
    caches: Sequence[KVCache | None], model: ServedModel, rows: int
) -> dict[str, Tensor]:
    empty = (np.zeros((0, *model.layout.row_shape), np.float32),)
    lengths = np.zeros(rows, np.int32)
    lengths[: len(caches)] = [0 if c is None else len(c) for c in caches]
    blocks = [empty if c is None else c.blocks() for c in caches]
    blocks += [empty] * (rows - len(caches))
    slots = model.cache_size(int(lengths.max()))
    return {"cache": RowBlocks(tuple(blocks), slots), "cache_length": lengths}


# --- whole texts ----------------------------------------------------------------------


def _whole_scores(
    prompts: Sequence[Sequence[int]], limits: Limits
) -> Task[list[Score]]:
    rows = yield from _run("score", "logprobs", prompts, limits)
    texts = [ScoredText(ids) for ids in prompts]
    for text, logprobs in zip(texts, rows, strict=True):
        text.take({"logprobs": logprobs}, len(logprobs))
    return [text.score(0) for text in texts]


def _run(
    signature: str, output: str, prompts: Sequence[Sequence[int]], limits: Limits
) -> Task[list[np.ndarray]]:
    model = limits.versions.current
    model.require(signature, f"{signature}()")
    results: dict[int, np.ndarray] = {}
    for chosen in _groups([len(prompt) for prompt in prompts], model, limits):
        rows = [prompts[i] for i in chosen]
        size = model.whole_size(max(map(len, rows)))
        inputs = _fed(model, rows, size)
        call = _call(model, signature, inputs, (), rows)
        reply = yield CallRequest(call, limits.deadline)
        yield from answering_model(call, reply, limits.versions, limits.deadline)
        for b, i in enumerate(chosen):
            row = reply.outputs[output][b]
            results[i] = np.array(row if output == "pooled" else row[: len(prompts[i])])
    return [results[i] for i in range(len(prompts))]


def _fed(
    model: ServedModel, rows: Sequence[Sequence[int]], size: int
) -> dict[str, Tensor]:
    """The inputs that feed rows of tokens."""
    count = model.batch_size(len(rows))
    ids = model.padding(count, size)
    lengths = np.ones(count, np.int32)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
        lengths[b] = len(row)
    return {"input_ids": ids, "input_length": lengths}


def _call(
    model: ServedModel,
    signature: str,
    inputs: dict[str, Tensor],
    outputs: tuple[str, ...],
    rows: Sequence[Sequence[int]],
    *,
    top: int = 0,
) -> Call:
    B, S = inputs["input_ids"].shape
    fed = tuple(map(len, rows))
    asked = (top,) * len(rows)
    expected = ExpectedReply(model, signature, outputs, B, fed, S, top=asked)
    return Call(signature, inputs, outputs, expected=expected)


def most_rows(
    model: ServedModel,
    size: int,
    capacity: int,
    cached: int = 0,
    *,
    new_cache: bool = False,
) -> int:
    """Most rows of ``size`` tokens after ``cached`` ones that one call should have.

    ``new_cache`` says that its reply has the new rows.

    Raises:
        InvalidRequest: the reply for one row could pass the 2 GiB limit.
    """
    row_bytes = 4 * size * model.manifest.output_width
    if row_bytes > MESSAGE_LIMIT:
        raise InvalidRequest(
            f"the reply for {size} tokens would have {row_bytes} bytes, more than "
            "one message may have (2 GiB): use shorter texts"
        )
    logits_bytes = 4 * size * model.manifest.vocab_size
    fits = min(MESSAGE_LIMIT // row_bytes, max(_LOGITS_LIMIT // logits_bytes, 1))
    fits = min(fits, model.rows_within_limit(size), capacity)
    if cached or new_cache:
        fits = min(fits, model.rows_that_fit(size, cached))
    return model.whole_batch(fits)


def _groups(
    lengths: Sequence[int], model: ServedModel, limits: Limits
) -> Iterator[list[int]]:
    """Indices of texts of like length, so that padding wastes little."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    group: list[int] = []
    for i in order:
        size = model.whole_size(lengths[i])
        fits = most_rows(model, size, limits.capacity)
        if group and (
            len(group) >= fits or model.whole_size(lengths[group[0]]) != size
        ):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
