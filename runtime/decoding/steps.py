"""One call for several rows: which rows, its inputs, and what its reply gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..contract import generate_name
from ..errors import MalformedReply
from ..results import Counters
from ..transports.base import Call, Reply, RowBlocks, Tensor
from .kv_cache import RowCache
from .sequence import Row
from .served_model import ServedModel

_QUICK = 8  # up to so many tokens in one call still give a quick first one
_WASTE = 4  # the graph stops in time, but its reply has a cache row for each of N


@dataclass(frozen=True)
class Step:
    """A call and the rows that it is for.

    ``fed[i]`` tokens of ``rows[i]`` go with it; ``tokens_per_call`` is N of
    ``generate_{N}``, 0 for ``prefill`` and ``decode``. ``partial`` says that tokens
    stay pending, so that the reply's logits mean nothing.
    """

    call: Call
    rows: tuple[Row, ...]
    fed: tuple[int, ...]
    tokens_per_call: int = 0
    partial: bool = False

    @property
    def deadline(self) -> float | None:
        """The earliest deadline of its rows."""
        deadlines = [row.deadline for row in self.rows if row.deadline is not None]
        return min(deadlines, default=None)


def plan(rows: Sequence[Row], model: ServedModel, *, keep: int = 0) -> Step:
    """The next step: for rows that still have a prompt to feed first, else for all.

    Rows of one step have the same model version and the same kind and size of call.

    Args:
        rows: unfinished rows, at least one.
        model: the model of the first row to go (of the current version for new rows).
        keep: so many of each row's tokens stay pending in any case.
    """
    lead = next((row for row in rows if row.pending > 1), rows[0])
    kind = _kind(lead, model, keep)
    chosen = [row for row in rows if _kind(row, model, keep) == kind]
    fed = max(min(row.pending - keep, model.largest_piece) for row in chosen)
    cached = max(row.cached for row in chosen)
    partial = keep > 0 or lead.pending > model.largest_piece
    made = 0 if partial else _tokens_per_call(chosen, model)
    chosen = chosen[: model.rows_that_fit(model.prompt_size(fed) + made, cached)]
    return _step(chosen, model, partial=partial, keep=keep)


def lead_version(rows: Sequence[Row]) -> int | None:
    """The pinned version of the row that ``plan`` serves next."""
    return next((row for row in rows if row.pending > 1), rows[0]).version


def _kind(row: Row, model: ServedModel, keep: int) -> tuple[object, ...]:
    pending = row.pending - keep
    if pending > model.largest_piece:
        return ("piece", row.version, row.cached > 0)
    graph = row.in_graph and bool(model.generate_sizes)
    size = model.prompt_size(max(pending, 1))
    return ("last", row.version, row.cached > 0, graph, size)


def _step(rows: list[Row], model: ServedModel, *, partial: bool, keep: int) -> Step:
    fed = tuple(min(row.pending - keep, model.largest_piece) for row in rows)
    size = model.prompt_size(max(fed))
    n = 0 if partial else _tokens_per_call(rows, model)
    padding = model.batch_size(len(rows)) - len(rows)
    count = len(rows) + padding
    ids = np.full((count, size), model.manifest.pad_token_id, np.int32)
    lengths = np.ones(count, np.int32)
    for b, (row, new) in enumerate(zip(rows, fed, strict=True)):
        ids[b, :new] = row.tokens[row.cached : row.cached + new]
        lengths[b] = new
    inputs: dict[str, Tensor] = {"input_ids": ids, "input_length": lengths}
    signature = "prefill"
    if n or any(row.cached for row in rows):
        signature = "decode"
        inputs |= _cache_inputs(rows, padding, model)
    if n:
        signature = generate_name(n)
        inputs |= _sampling_inputs(rows, padding, n)
    outputs = ("new_cache",) if partial else ()
    call = Call(signature, inputs, outputs, rows[0].version)
    return Step(call, tuple(rows), fed, n, partial)


def _tokens_per_call(rows: Sequence[Row], model: ServedModel) -> int:
    """N that wastes little and gives streams their first token soon; 0 for none."""
    sizes = model.generate_sizes
    if not sizes or not rows[0].in_graph:
        return 0
    remaining = max(row.remaining for row in rows)
    if streams := [row.generated for row in rows if row.streaming]:
        if not min(streams) and sizes[0] > _QUICK:
            return 0
        growth = max(2 * min(streams), sizes[0])
        sizes = tuple(size for size in sizes if size <= growth)
    enough = [size for size in sizes if remaining <= size <= _WASTE * remaining]
    below = [size for size in sizes if size <= remaining]
    return min(enough) if enough else max(below, default=sizes[0])


def _cache_inputs(
    rows: Sequence[Row], padding: int, model: ServedModel
) -> dict[str, Tensor]:
    lengths = np.array([row.cached for row in rows] + [0] * padding, np.int32)
    none = (np.zeros((0, *model.layout.row_shape), np.float32),)
    pieces = [none if row.cache is None else row.cache.pieces() for row in rows]
    blocks = RowBlocks(
        (*pieces, *[none] * padding), model.cache_size(int(lengths.max()))
    )
    return {"cache": blocks, "cache_length": lengths}


def _sampling_inputs(rows: Sequence[Row], padding: int, n: int) -> dict[str, Tensor]:
    def column(values: list[float], rest: float, dtype: type) -> np.ndarray:
        return np.array(values + [rest] * padding, dtype)

    seeds = [row.sampling.key() for row in rows] + [np.zeros(2, np.int32)] * padding
    nothing: list[Sequence[int]] = [()] * padding
    floats, ints = np.float32, np.int32
    return {
        "max_new_tokens": column([min(n, row.remaining) for row in rows], 0, ints),
        "history": _ragged([sorted(row.seen) for row in rows] + nothing),
        "stop_ids": _ragged([row.stop_ids for row in rows] + nothing),
        "seed": np.stack(seeds),
        "temperature": column([row.sampling.temperature for row in rows], 0, floats),
        "top_k": column([row.sampling.top_k for row in rows], 0, ints),
        "top_p": column([row.sampling.top_p for row in rows], 1, floats),
        "repetition_penalty": column(
            [row.sampling.repetition_penalty for row in rows], 1, floats
        ),
    }


def _ragged(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """``[B, W]`` int32 padded with −1, W a power of two.

    Slot 0 is −1 as well: a server that pads inputs repeats a tensor's first element.
    """
    longest = 1 + max(map(len, lists))
    out = np.full((len(lists), 1 << (longest - 1).bit_length()), -1, np.int32)
    for b, values in enumerate(lists):
        out[b, 1 : 1 + len(values)] = values
    return out


def apply(
    step: Step, reply: Reply, model: ServedModel
) -> list[tuple[Row, np.ndarray | None]]:
    """Give each row what the reply holds for it.

    Returns:
        Each row of the step, with the raw logits ``[V]`` of its next token where it
        chooses for itself, else None.

    Raises:
        MalformedReply: not what the contract promises.
    """
    new_cache = _output(reply, "new_cache", len(step.rows), 6)
    out: list[tuple[Row, np.ndarray | None]] = []
    _count(step, reply)
    for b, row in enumerate(step.rows):
        row.version = reply.version
        if row.cache is None:
            row.cache = RowCache(model.layout)
        made: list[int] = []
        if step.tokens_per_call:
            made = _tokens(step, reply, b, model)
        rows = step.fed[b] + max(len(made) - 1, 0)
        if rows > new_cache.shape[1]:
            raise MalformedReply(
                f"new_cache must have {rows} rows, the model returned "
                f"{new_cache.shape[1]}"
            )
        row.cache.append(new_cache[b, :rows])
        if step.tokens_per_call:
            logprobs = _output(reply, "logprobs", len(step.rows), 2)[b]
            for token, logprob in zip(made, logprobs, strict=False):
                if row.finish_reason is None:
                    row.accept(token, float(logprob))
        out.append((row, _logits(step, reply, b, model)))
    return out


def _tokens(step: Step, reply: Reply, b: int, model: ServedModel) -> list[int]:
    counts = _output(reply, "count", len(step.rows), 1)
    tokens = _output(reply, "tokens", len(step.rows), 2)
    count, most = int(counts[b]), min(step.tokens_per_call, step.rows[b].remaining)
    if not 1 <= count <= min(most, tokens.shape[1]):
        raise MalformedReply(
            f"the model must make 1 to {most} tokens for a row, it says it made {count}"
        )
    made = [int(token) for token in tokens[b, :count]]
    if not all(0 <= token < model.manifest.vocab_size for token in made):
        raise MalformedReply(
            f"the model returned token ids outside its vocabulary: {made}"
        )
    return made


def _logits(step: Step, reply: Reply, b: int, model: ServedModel) -> np.ndarray | None:
    if step.tokens_per_call or step.partial:
        return None
    logits = _output(reply, "logits", len(step.rows), 2)[b]
    if logits.shape != (model.manifest.vocab_size,) or np.isnan(logits).any():
        raise MalformedReply(
            f"logits must be {model.manifest.vocab_size} numbers, the model returned "
            f"{logits.size}, {int(np.isnan(logits).sum())} of them NaN"
        )
    return logits.astype(np.float32, copy=False)


def _output(reply: Reply, name: str, rows: int, rank: int) -> np.ndarray:
    array = reply.outputs.get(name)
    if array is None or array.ndim != rank or array.shape[0] < rows:
        found = "nothing" if array is None else f"shape {array.shape}"
        raise MalformedReply(
            f"output {name!r} must have rank {rank} and {rows} rows, the model "
            f"returned {found}"
        )
    return array


def _count(step: Step, reply: Reply) -> None:
    share = len(step.rows)
    for row in step.rows:
        row.counters.bytes_sent += reply.bytes_sent // share
        row.counters.bytes_received += reply.bytes_received // share
    for counters in distinct_counters(step.rows):
        counters.calls += 1
        counters.retries += reply.retries


def distinct_counters(rows: Sequence[Row]) -> list[Counters]:
    """The rows' counters, each once: the beams of one prompt have one in common."""
    return list({id(row.counters): row.counters for row in rows}.values())
