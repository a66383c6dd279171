"""The requests that a server replays before a version is ready.

They make the server compile what it will need: every prompt size once without a cache,
and generation from a cache, for every number of rows. Records are small, since
a tensor of zeros is written as its shape and one zero. The file is what TensorFlow
Serving reads: a TFRecord of ``PredictionLog`` messages
(tensorflow_serving/apis/prediction_log.proto).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...runtime.codec.wire import block
from ...runtime.contract import Manifest, generate_name, session_names, signature
from ...runtime.model_dir import WARMUP_PATH, WARMUP_RECORDS_LIMIT
from ..errors import ExportError
from .buckets import Sizes

_MOST_TOKENS = 4096  # of a prefill
_MOST_BYTES = 1 << 30  # of a cache
_SLOTS = 8  # of a cache: nothing is compiled for their number

Dims = Mapping[str, int]


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
        for name, dims in calls:
            writer.write(_prediction_log(manifest, name, dims))
    return len(calls)


def warmup_calls(
    manifest: Manifest, fed: Sizes, loop: Sizes
) -> Iterator[tuple[str, Dims]]:
    """Signature names and the sizes B, S and C to call them with.

    Sizes whose smallest request would be huge are left to their first one.
    """
    generating = [generate_name(n) for n in manifest.generate]
    most_slots = _MOST_BYTES // manifest.cache_layout.row_bytes
    prompts = fed.prompt or (8,)
    for name in ("score", "embed", "serving_default"):
        yield name, {"B": 1, "S": prompts[:2][-1], "C": 0}
    for rows in fed.rows or (1,):
        for prompt in prompts:
            if rows * prompt <= _MOST_TOKENS:
                yield "prefill", {"B": rows, "S": prompt, "C": 0}
        if rows * _SLOTS <= most_slots:
            yield "decode", {"B": rows, "S": 1, "C": _SLOTS}
    for rows in loop.rows or (1,):
        if rows * _SLOTS <= most_slots:
            # The signatures share one loop, so one of them compiles it for all.
            yield from (
                (name, {"B": rows, "S": 1, "C": _SLOTS}) for name in generating[:1]
            )
    for name in generating:
        yield name, {"B": 1, "S": prompts[:2][-1], "C": 1}
    # Their tickets are void, so all is computed and nothing is written.
    for name in session_names(manifest.generate) if manifest.sessions else ():
        yield name, {"B": 1, "S": prompts[:2][-1], "C": 1}


def _prediction_log(manifest: Manifest, name: str, dims: Dims) -> bytes:
    import tensorflow as tf

    model = block(1, b"opt") + block(3, name.encode())
    request = block(1, model)
    for spec in signature(name, manifest.cache_layout).inputs:
        # Everything is 0 but what makes a row do something.
        one = spec.name in ("input_length", "max_new_tokens", "attention_mask")
        shape = [
            size if isinstance(size, int) else dims.get(size, 1) for size in spec.shape
        ]
        tensor = tf.make_tensor_proto(int(one), spec.dtype, shape)
        value = tensor.SerializeToString(deterministic=True)
        entry = block(1, spec.name.encode()) + block(2, value)
        request += block(2, entry)
    return block(6, block(1, request))
