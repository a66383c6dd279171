"""Which sequences go with the next call, and that call's inputs."""

from __future__ import annotations

from collections.abc import Sequence as GenericSequence
from dataclasses import dataclass

import numpy as np

from ...models.generation.sampling_params import SamplingParams
from ..codec import RowBlocks, Tensor
from ..contract import generate_name, session_generate_name
from ..results import Counters
from ..sampling import GREEDY
from ..transports.base import Call
from .expected_reply import ExpectedReply
from .kv_cache import KVCache
from .sequence import Sequence
from .served_model import ServedModel

_QUICK = 8  # up to so many tokens in one call still give a quick first one
_WASTE = 4  # the graph stops in time, but its reply has a cache row for each of N
_GROWTH = 8  # a stream's next call makes so many times what there is already, at most


@dataclass(frozen=True)
class Step:
    """A call and the sequences that it is for, row by row.

    ``fed[i]`` tokens of ``sequences[i]`` go with it; ``tokens_per_call`` is N of
    ``generate_{N}``, 0 for ``prefill`` and ``decode``, and of the same in sessions.
    ``partial`` says that tokens stay pending, so that the reply's logits mean nothing.
    """

    call: Call
    sequences: tuple[Sequence, ...]
    fed: tuple[int, ...]
    tokens_per_call: int = 0
    partial: bool = False

    @property
    def in_session(self) -> bool:
        """Whether it builds on caches that the server keeps."""
        return self.call.signature.startswith("session_")

    @property
    def deadline(self) -> float | None:
        """The earliest deadline of its sequences."""
        deadlines = [s.deadline for s in self.sequences if s.deadline is not None]
        return min(deadlines, default=None)


def plan(
    sequences: GenericSequence[Sequence], model: ServedModel, *, keep: int = 0
) -> Step:
    """The next step: for those that still have a prompt to feed first, else for all.

    Sequences of one step have the same model version and the same kind and size of
    call.

    Args:
        sequences: unfinished ones, at least one.
        model: the model of the first one to go (of the current version if it is new).
        keep: so many of each one's tokens stay pending in any case.
    """
    lead = _lead(sequences)
    kind = _kind(lead, model, keep)
    chosen = [s for s in sequences if _kind(s, model, keep) == kind]
    fed = max(min(s.pending - keep, model.largest_prompt_chunk) for s in chosen)
    cached = max(s.cached for s in chosen)
    partial = keep > 0 or lead.pending > model.largest_prompt_chunk
    generated = 0 if partial else _tokens_per_call(chosen, model)
    size = model.prompt_size(fed)
    fits = model.rows_that_fit(size, cached, generated=generated)
    if lead.slot:  # neither the cache nor its new rows travel
        within = model.rows_within_limit(max(size, cached))
        fits = min(model.rows_that_fit(0, 0), within)
    return _step(chosen[:fits], model, partial=partial, keep=keep)


def lead_version(sequences: GenericSequence[Sequence]) -> int | None:
    """The pinned version of the sequence that ``plan`` serves next."""
    return _lead(sequences).version


def distinct_counters(sequences: GenericSequence[Sequence]) -> list[Counters]:
    """Their counters, each once: the beams of one prompt have one in common."""
    return list({id(s.counters): s.counters for s in sequences}.values())


def _lead(sequences: GenericSequence[Sequence]) -> Sequence:
    return next((s for s in sequences if s.pending > 1), sequences[0])


def _kind(sequence: Sequence, model: ServedModel, keep: int) -> tuple[object, ...]:
    """Sequences of equal kind may share a call."""
    pending = sequence.pending - keep
    target = sequence.slot.target if sequence.slot else None
    origin = (sequence.version, sequence.model_id, target)
    if pending > model.largest_prompt_chunk:
        return ("prompt chunk", *origin, sequence.cached > 0)
    in_graph = sequence.in_graph(model) and bool(model.generate_sizes)
    size = model.prompt_size(max(pending, 1))
    return ("last", *origin, sequence.cached > 0, in_graph, size)


def _step(
    sequences: list[Sequence], model: ServedModel, *, partial: bool, keep: int
) -> Step:
    fed = tuple(min(s.pending - keep, model.largest_prompt_chunk) for s in sequences)
    size = model.prompt_size(max(fed))
    n = most = 0 if partial else _tokens_per_call(sequences, model)
    rows, in_session = model.batch_size(len(sequences)), bool(sequences[0].slot)
    if n and in_session and size == 1:  # nothing travels, and this one is quickest
        n = model.generate_sizes[-1]
    # An idle row of a session writes what the row that it repeats writes.
    padding = 0 if in_session else rows - len(sequences)
    ids = model.padding(len(sequences) + padding, size)
    lengths = np.ones(len(ids), np.int32)
    for b, (sequence, new) in enumerate(zip(sequences, fed, strict=True)):
        ids[b, :new] = sequence.tokens[sequence.cached : sequence.cached + new]
        lengths[b] = new
    inputs: dict[str, Tensor] = {"input_ids": ids, "input_length": lengths}
    signature = "prefill"
    if in_session:
        signature = "session_decode"
        inputs |= _slot_inputs(sequences)
    elif n or any(s.cached for s in sequences):
        signature = "decode"
        inputs |= _cache_inputs(sequences, padding, model)
    if n:
        signature = (session_generate_name if in_session else generate_name)(n)
        inputs |= _sampling_inputs(sequences, padding, most, model)
    inputs = {name: _repeated(tensor, rows) for name, tensor in inputs.items()}
    most_tokens = tuple(min(most, s.remaining) for s in sequences) if n else ()
    top = tuple(s.options.top_logprobs for s in sequences) if n else ()
    # All outputs, though of a partial prompt nobody needs logits: a server prepares a
    # program for each choice of outputs.
    expected = ExpectedReply(model, signature, (), rows, fed, size, most_tokens, top)
    version, model_id = sequences[0].version, sequences[0].model_id
    slot = sequences[0].slot
    replicas = (slot.target,) if slot and slot.target else ()
    call = Call(signature, inputs, (), version, model_id, expected, replicas)
    return Step(call, tuple(sequences), fed, n, partial)


def _tokens_per_call(sequences: GenericSequence[Sequence], model: ServedModel) -> int:
    """N that wastes little and gives streams their first token soon; 0 for none."""
    sizes = model.generate_sizes
    if not sizes or not sequences[0].in_graph(model):
        return 0
    remaining = max(s.remaining for s in sequences)
    if streams := [s.generated for s in sequences if s.streaming]:
        if not min(streams) and sizes[0] > _QUICK:
            return 0
        growth = max(_GROWTH * min(streams), sizes[0])
        sizes = tuple(size for size in sizes if size <= growth)
    enough = [size for size in sizes if remaining <= size <= _WASTE * remaining]
    below = [size for size in sizes if size <= remaining]
    return min(enough) if enough else max(below, default=sizes[0])


def _cache_inputs(
    sequences: GenericSequence[Sequence], padding: int, model: ServedModel
) -> dict[str, Tensor]:
    lengths = np.array([s.cached for s in sequences] + [0] * padding, np.int32)
    empty = (np.zeros((0, *model.layout.row_shape), np.float32),)
    rows = [
        s.cache.blocks() if isinstance(s.cache, KVCache) else empty for s in sequences
    ]
    slots = model.cache_size(int(lengths.max()))
    blocks = RowBlocks((*rows, *[empty] * padding), slots)
    return {"cache": blocks, "cache_length": lengths}


def _slot_inputs(sequences: GenericSequence[Sequence]) -> dict[str, Tensor]:
    slots = [s.slot for s in sequences if s.slot]
    return {
        "slot": np.array([slot.number for slot in slots], np.int32),
        "ticket": np.array([slot.ticket for slot in slots], np.int64),
        "cache_length": np.array([s.cached for s in sequences], np.int32),
    }


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    """The tensor with its first row again after the others, up to so many rows."""
    if isinstance(tensor, RowBlocks) or len(tensor) == rows:
        return tensor
    return np.concatenate([tensor, np.repeat(tensor[:1], rows - len(tensor), axis=0)])


def _sampling_inputs(
    sequences: GenericSequence[Sequence], padding: int, most: int, model: ServedModel
) -> dict[str, Tensor]:
    """How each row's tokens are chosen, as far as the model's contract has it.

    ``most`` is how many of them, and one of the signatures' N.
    """
    each = [min(most, s.remaining) for s in sequences] + [0] * padding
    idle: list[GenericSequence[int]] = [()] * padding
    params = [s.params() for s in sequences] + [GREEDY.params()] * padding
    columns = map(np.concatenate, zip(*params, strict=True))
    biases = [s.bias for s in sequences]
    V, W = model.manifest.vocab_size, model.manifest.max_positions
    inputs: dict[str, Tensor] = {
        "max_new_tokens": np.array(each, np.int32),
        "history": _ragged([s.history(model) for s in sequences] + idle, W),
        "stop_ids": _ragged([s.stop_ids for s in sequences] + idle, V),
        "bias_ids": _ragged([list(bias) for bias in biases] + idle, V),
        "bias": _ragged([list(b.values()) for b in biases] + idle, V, 0, np.float32),
        **dict(zip(SamplingParams._fields, columns, strict=True)),
    }
    known = {spec.name for spec in model.signature(generate_name(most)).inputs}
    return {name: tensor for name, tensor in inputs.items() if name in known}


def _ragged(
    lists: GenericSequence[GenericSequence[float]],
    limit: int,
    fill: float = -1,
    dtype: type = np.int32,
) -> np.ndarray:
    """``[B, W]`` padded with ``fill``, W a power of two or the graph's ``limit``.

    Slot 0 is ``fill`` as well: a server that pads inputs repeats a tensor's first
    element.
    """
    longest = 1 + max(map(len, lists))
    width = max(longest, min(1 << (longest - 1).bit_length(), limit))
    out = np.full((len(lists), width), fill, dtype)
    for b, values in enumerate(lists):
        out[b, 1 : 1 + len(values)] = values
    return out
