"""The requests that a server replays before a version is ready.

They make the server compile what it will need: every prompt size once without a cache,
and generation from a cache, for every number of rows. They ask for the outputs that
clients ask for, since TensorFlow Serving makes a program of its own for each choice.
Records are small, since a tensor of zeros is written as its shape and one zero. The
file is what TensorFlow Serving reads: a TFRecord of ``PredictionLog`` messages
(tensorflow_serving/apis/prediction_log.proto).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ...runtime.codec.wire import block
from ...runtime.contract import (
    Manifest,
    generate_name,
    session_names,
    session_tokens_per_call,
    signature,
    tokens_per_call,
)
from ...runtime.model_dir import WARMUP_PATH, WARMUP_RECORDS_LIMIT
from ..errors import ExportError
from .buckets import Sizes

_MOST_TOKENS = 4096  # of a prefill
_MOST_BYTES = 1 << 30  # of a cache
_SLOTS = 8  # of a cache: nothing is compiled for their number

Dims = Mapping[str, int]


_TEXTS = ("describe", "tokenizer")
_NOW_AND_THEN = (
    ("score", ("logprobs",)),
    ("score", ()),
    ("embed", ()),
    ("serving_default", ()),
)


class WarmupCall(NamedTuple):
    """A signature, the sizes B, S and C to call it with, and the outputs asked for
    (empty: all)."""

    name: str
    dims: Dims
    outputs: tuple[str, ...] = ()


def write_warmup(folder: Path, manifest: Manifest, fed: Sizes, loop: Sizes) -> int:
    """Write the file into a version's folder; the number of its records.

    Args:
        fed: sizes that are compiled where tokens are fed, all but the loop.
        loop: those of the loop of ``generate_{N}``.

    Raises:
        ExportError: more sizes than a server replays.
    """
    import tensorflow as tf

    calls = list(warmup_calls(manifest, fed, loop))
    if len(calls) > WARMUP_RECORDS_LIMIT:
        raise ExportError(
            f"the sizes asked for make {len(calls)} warm-up requests and a server "
            f"replays {WARMUP_RECORDS_LIMIT}: choose fewer of --prompt-buckets or "
            "--batch-sizes"
        )
    path = folder / WARMUP_PATH
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for call in calls:
            writer.write(_prediction_log(manifest, call))
    return len(calls)


def warmup_calls(manifest: Manifest, fed: Sizes, loop: Sizes) -> Iterator[WarmupCall]:
    """In the order of need: what every client asks first, one row before several, small
    before large, generation before what is called now and then.

    Sizes whose smallest request would be huge are left to their first one.
    """
    for name in _TEXTS:
        if name in manifest.signatures:
            yield WarmupCall(name, {"B": 1})
    most_slots = _MOST_BYTES // manifest.cache_layout.row_bytes
    prompts = fed.prompt or (8,)
    usual = {"B": 1, "S": prompts[:2][-1], "C": 1}
    generating = [generate_name(n) for n in manifest.generate]
    one_row = generating + (
        session_names(manifest.generate) if manifest.sessions else []
    )
    for rows in sorted({1, *loop.rows, *fed.rows}):
        cached = {"B": rows, "S": 1, "C": _SLOTS}
        affordable = rows * _SLOTS <= most_slots
        if rows in (loop.rows or (1,)) and affordable:
            # The signatures share one loop, so one of them compiles it for all.
            yield from (WarmupCall(name, cached) for name in generating[:1])
        if rows == 1:
            # Sessions' tickets are void, so all is computed and nothing is written.
            yield from (WarmupCall(name, usual) for name in one_row)
        if rows in (fed.rows or (1,)):
            for prompt in fed.prompts_of(rows) or prompts:
                if rows * prompt <= _MOST_TOKENS:
                    yield WarmupCall("prefill", {"B": rows, "S": prompt, "C": 0})
            if affordable:
                yield WarmupCall("decode", cached)
    rows = max(2, *loop.rows) if loop.rows else 1
    packs = manifest.weights_dtype == "int8" and manifest.generate
    if packs and 1 < rows <= max(manifest.batch_sizes, default=rows):
        # Where plain ops take several rows, the signature that is called most packs its
        # matrices at the first such call: half a second for 125m.
        yield WarmupCall(one_row[-1], {"B": rows, "S": 1, "C": 1})
    for name, outputs in _NOW_AND_THEN:
        if name in manifest.signatures:
            yield WarmupCall(name, {**usual, "C": 0}, outputs)


def _given(name: str) -> dict[str, int]:
    """What isn't 0, so that rows do something: of a loop also a step, which the first
    token of a prompt doesn't take."""
    N = tokens_per_call(name) or session_tokens_per_call(name) or 1
    lengths = {"input_length": 1, "attention_mask": 1, "max_new_tokens": min(2, N)}
    return {**lengths, "stop_ids": -1}


def _prediction_log(manifest: Manifest, call: WarmupCall) -> bytes:
    import tensorflow as tf

    name, dims, outputs = call
    model = block(1, b"opt") + block(3, name.encode())
    request = block(1, model)
    for spec in signature(name, manifest.cache_layout).inputs:
        given = _given(name).get(spec.name, 0)
        shape = [
            size if isinstance(size, int) else dims.get(size, 1) for size in spec.shape
        ]
        tensor = tf.make_tensor_proto(given, spec.dtype, shape)
        value = tensor.SerializeToString(deterministic=True)
        entry = block(1, spec.name.encode()) + block(2, value)
        request += block(2, entry)
    for output in outputs:
        request += block(3, output.encode())
    return block(6, block(1, request))
