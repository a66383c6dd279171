"""From a checkpoint to a folder with one ``.tflite`` file, all that a device needs.

    OUT/1/model.tflite       signatures `decode` and `prefill_{S}`, weights once
    OUT/1/tokenizer.json     the `tokenizers` package reads it
    OUT/1/config.json        the checkpoint's own
    OUT/1/assets.extra/      the manifest

The manifest also travels inside the file, as an entry of its metadata.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...models.config import OPTConfig
from ...runtime.contract import Manifest
from ...runtime.model_dir import TFLITE_FILE, TFLITE_MANIFEST_KEY
from ..checkpoint import Checkpoint
from ..errors import ExportError
from ..options import ExportOptions
from ..publish import Progress, silent, write_manifest
from ..weights import weights_digest

PROMPT_BUCKET = 128
CACHE_SIZE = 512


def write_tflite(
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
    buckets, cache_size = chosen_sizes(
        source.config, options.prompt_buckets, options.cache_size
    )
    progress("reading the checkpoint")
    manifest = source.manifest(
        options,
        ["decode", "prefill", "describe"],
        weights_digest(source.config, source.weights),
        prompt_buckets=buckets,
        cache_buckets=[cache_size],
        batch_sizes=[1],
    )
    _write_model(folder / TFLITE_FILE, source, manifest, progress)
    source.config.save_pretrained(folder)
    if source.tokenizer is not None:
        (folder / "tokenizer.json").write_text(source.tokenizer, encoding="utf-8")
    progress("writing the manifest")
    write_manifest(folder, manifest)


def _write_model(
    path: Path, source: Checkpoint, manifest: Manifest, progress: Progress
) -> None:
    from . import graph
    from .weights import constants
    from .writer import write

    config, dtype = source.config, manifest.weights_dtype
    C = manifest.cache_buckets[0]
    graphs = {}
    for S in (1, *manifest.prompt_buckets):
        name = "decode" if S == 1 else f"prefill_{S}"
        progress(f"converting {name}")
        graphs[name] = graph.convert(config, manifest.framework, dtype, S, C)
    progress(f"writing the weights as {dtype}")
    metadata = {TFLITE_MANIFEST_KEY: manifest.to_json().encode()}
    arguments = graph.arguments(config, dtype)
    weights = dict(constants(config, source.weights, dtype))
    with path.open("xb") as file:
        write(file, graphs, arguments, weights, metadata)


def chosen_sizes(
    config: OPTConfig, prompt_buckets: Sequence[int] | None, cache_size: int | None
) -> tuple[list[int], int]:
    """Prompt buckets and cache size as given, or 128 and 512 within the positions.

    A sequence has at most one token more than the cache holds.

    Raises:
        ExportError: sizes that the model does not have.
    """
    limit = config.max_position_embeddings
    if cache_size is None:
        cache_size = min(CACHE_SIZE, limit)
    if not 1 <= cache_size <= limit:
        raise ExportError(
            f"--cache-size should be 1 to {limit}, the model's positions, "
            f"got {cache_size}"
        )
    if prompt_buckets is None:
        prompt_buckets = [min(PROMPT_BUCKET, cache_size)]
    buckets = list(prompt_buckets)
    if not buckets or buckets[0] < 2 or buckets[-1] > cache_size:
        raise ExportError(
            f"--prompt-buckets should be sizes from 2 to the cache's {cache_size}, "
            f"got {', '.join(map(str, buckets)) or 'none'}"
        )
    return buckets, cache_size
