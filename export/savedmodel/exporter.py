"""From a checkpoint to a SavedModel that obeys the graph contract."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.config import OPTConfig
from ...runtime.contract import (
    EXTRA_OUTPUTS,
    CacheLayout,
    Manifest,
    generate_name,
    session_names,
)
from ..checkpoint import Checkpoint
from ..errors import ExportError
from ..options import ExportOptions
from ..publish import Progress, silent, write_manifest
from ..weights import packed_weights, weights_digest
from .buckets import Sizes, chosen_sizes
from .compact_functions import compact_functions
from .compiled import compile_for_this_processor
from .reproducible import settle_fingerprint, without_locations
from .separate_outputs import separate_outputs
from .warmup import write_warmup

if TYPE_CHECKING:  # these import TensorFlow
    from .calibration import Activations
    from .signatures import Signatures

_MOST_FULL_ROWS = 32
"""Rows of a call that may have all positions; of shorter ones there may be more.
As many as the export's largest batch, where that is larger."""

SIGNATURES = ("serving_default", "prefill", "decode", "score", "embed")


def signature_names(options: ExportOptions) -> list[str]:
    """Names of an export's signatures, but for the tokenizer's."""
    names = [*SIGNATURES, *map(generate_name, options.generate)]
    if options.sessions:
        names += session_names(options.generate)
    return [*names, "describe"]


def write_savedmodel(
    folder: Path,
    checkpoint: str | os.PathLike[str],
    options: ExportOptions,
    *,
    progress: Progress = silent,
) -> None:
    """Write the files of a version, its manifest the last, into an empty folder.

    Args:
        folder: where to write.
        checkpoint: a local directory in Hugging Face's layout.
        options: the choices.
        progress: called with a short message as the work goes on.

    Raises:
        ExportError: options that the model excludes.
    """
    source = Checkpoint.open(checkpoint)
    config, layout = source.config, _cache_layout(source.config, options.cache)
    sizes = call_sizes(config, options)
    progress(f"reading the checkpoint, packing its weights as {options.weights}")
    activations = _activations(source, options, progress)
    weights, digest = _variables(source, activations, options)
    manifest = source.manifest(
        options,
        signature_names(options),
        digest,
        generate=list(options.generate),
        batch_sizes=_batch_sizes(options, sizes),
        max_tokens_per_call=max([_MOST_FULL_ROWS, *sizes.rows])
        * config.max_position_embeddings,
        compiled_prompts=list(sizes.prompt),
        sessions=session_sizes(config, options),
        activations=activations.to_dict() if activations else {},
    )
    texts = {} if source.tokenizer is None else {"tokenizer": source.tokenizer}
    texts["describe"] = manifest.to_json()
    from .choose_backend import chosen_backend
    from .signatures import Signatures

    backend = chosen_backend(
        config,
        weights,
        layout,
        options,
        sizes,
        int8_activations=manifest.activations.get("dtype") == "int8",
    )

    module = Signatures(
        config,
        backend,
        weights,
        layout,
        texts,
        manifest.generate,
        most_tokens=manifest.max_tokens_per_call,
        slots=_session_slots(manifest),
    )
    _save(folder, module, options.compiler, progress)
    compact_functions(folder)
    write_warmup(folder, manifest, backend.compiled, backend.compiled_loop)
    if options.framework == "tf":  # what loops in JAX's can't be put in line
        separate_outputs(folder, tuple(EXTRA_OUTPUTS))
    if activations and activations.smoothing:
        activations.smoothing.save(folder)
    settle_fingerprint(folder)
    progress("writing the manifest")
    write_manifest(folder, manifest)
    if options.compile_for_this_processor:
        progress("compiling for this processor")
        compile_for_this_processor(folder)
        write_manifest(folder, manifest)  # with the digests of what was compiled


def _cache_layout(config: OPTConfig, dtype: str) -> CacheLayout:
    try:
        return CacheLayout(
            config.num_hidden_layers, config.num_attention_heads, config.head_dim, dtype
        )
    except ValueError as error:
        raise ExportError(str(error)) from None


def session_sizes(config: OPTConfig, options: ExportOptions) -> dict[str, int]:
    """The manifest's ``sessions``: slots, and no more positions than the model has."""
    if not options.sessions:
        return {}
    positions = min(options.session_slots, config.max_position_embeddings)
    return {"slots": options.sessions, "positions": positions}


def call_sizes(config: OPTConfig, options: ExportOptions) -> Sizes:
    """Sizes that the graph rounds up to; none unless it is compiled.

    Raises:
        ExportError: options with sizes beyond the model's.
    """
    options.check_positions(config.max_position_embeddings)
    if options.compiler == "none":
        return Sizes()
    return chosen_sizes(
        config.max_position_embeddings,
        options.prompt_buckets,
        options.batch_sizes,
        framework=options.framework,
    )


def _activations(
    source: Checkpoint, options: ExportOptions, progress: Progress
) -> Activations | None:
    """What int8 weights are multiplied with; None where that is no question."""
    if not options.multiplies_int8:
        return None
    from .calibration import choose_activations

    if options.activations != "int16":
        progress("measuring what int8 activations cost")
    return choose_activations(source, options)


def _batch_sizes(options: ExportOptions, sizes: Sizes) -> list[int]:
    """What the manifest tells callers to round up to: sizes that were asked for. The
    graph takes any number of rows."""
    return [] if options.batch_sizes is None else list(sizes.rows)


def _variables(
    source: Checkpoint, activations: Activations | None, options: ExportOptions
) -> tuple[dict[str, Any], str]:
    """The weights as variables by their names in the export, and the digest of the
    checkpoint's own."""
    weights = source.weights if activations is None else activations.weights(source)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(weights_digest, source.config, source.weights)
        packed = packed_weights(
            source.config,
            weights,
            options.weights,
            compiled=options.compiler == "xla",
        )
        variables = {name: _variable(name, array) for name, array in packed}
        return variables, digest.result()


def _save(
    folder: Path, module: Signatures, compiler: str | None, progress: Progress
) -> None:
    import tensorflow as tf

    progress("tracing the signatures")
    locations = without_locations() if compiler == "xla" else nullcontext()
    with _one_traceback():
        with locations:  # of JAX's programs
            concrete = module.concrete()
        progress("writing the SavedModel")
        options = tf.saved_model.SaveOptions(save_debug_info=False)
        tf.saved_model.save(module, str(folder), concrete, options)


@contextmanager
def _one_traceback() -> Iterator[None]:
    """All of TensorFlow's ops keep the same lines of Python as those that made them.

    A graph that is written and not run has no errors to name such lines in, and to look
    for them takes a tenth of the time of an export.
    """
    from tensorflow.python.util import tf_stack

    extract = tf_stack.extract_stack
    here = extract()
    tf_stack.extract_stack = lambda stacklevel=1: here
    try:
        yield
    finally:
        tf_stack.extract_stack = extract


def _session_slots(manifest: Manifest) -> Any:
    """Where the server keeps caches; None if there are no sessions."""
    if not manifest.sessions:
        return None
    from .session_slots import SessionSlots

    digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()
    return SessionSlots(
        **manifest.sessions,
        layout=manifest.cache_layout,
        name=f"optserve_sessions_{digest[:16]}",
    )


def _variable(name: str, array: np.ndarray) -> Any:
    """A variable in the array's memory."""
    import tensorflow as tf

    bits: Any = array.view(f"u{array.itemsize}")
    held = tf.experimental.dlpack.from_dlpack(bits.__dlpack__())
    value = tf.bitcast(held, array.dtype.name)
    return tf.Variable(value, trainable=False, name=name)
