"""From a checkpoint to a folder with one ``.tflite`` file, all that a device needs.

    OUT/1/model.tflite       signatures `decode` and `prefill_{S}`, weights once
    OUT/1/tokenizer.json     the `tokenizers` package reads it
    OUT/1/config.json        the checkpoint's own
    OUT/1/assets.extra/optserve_manifest.json

The manifest also travels inside the file, as the metadata entry ``optserve_manifest``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...models.checkpoints import open_weights, resolve
from ...models.config import OPTConfig
from ...models.weights import check_weights, weight_shapes
from ...runtime.contract import Manifest
from ...runtime.model_dir import TFLITE_FILE, TFLITE_MANIFEST_KEY
from ..errors import ExportError
from ..publish import check_version, staging, write_manifest
from ..savedmodel.exporter import Progress, special_ids, tokenizer_text, tool_versions
from ..weights import weights_digest

WEIGHTS = ("float32", "float16", "int8", "int4")

PROMPT_BUCKET = 128
CACHE_SIZE = 512


def export_tflite(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    framework: str = "tf",
    weights: str = "float32",
    prompt_buckets: Sequence[int] | None = None,
    cache_size: int | None = None,
    version: int | None = None,
    revision: str | None = None,
    progress: Progress = lambda message: None,
) -> Path:
    """Write ``OUT/VERSION`` with a model for LiteRT (see the module).

    Args:
        checkpoint: a directory in Hugging Face's layout, or a hub id.
        out: the model's base folder; made if needed.
        framework: whose math is converted, ``"tf"`` or ``"jax"``.
        weights: dtype of the stored matrices, one of ``WEIGHTS`` (``tflite_weights.py``
            says what each stands for).
        prompt_buckets: S of the ``prefill_{S}`` signatures. The runtime packs the
            weights in memory once for each of them. None means 128.
        cache_size: C, the tokens that the cache holds; a sequence has at most C + 1.
            None means 512. Both defaults stay within the model's positions.
        version: the folder's number; the next free one if None.
        revision: of a hub checkpoint.
        progress: called with a short message as the work goes on.

    Returns:
        The version's folder. It appears whole or not at all.

    Raises:
        ExportError: unusable options, a checkpoint that is none, or a version that
            exists.
    """
    check_version(out, version)
    source = resolve(checkpoint, revision=revision)
    config = OPTConfig.from_pretrained(source)
    buckets, cache_size = chosen_sizes(
        config, framework, weights, prompt_buckets, cache_size
    )
    stored = open_weights(source)
    shapes = {name: stored.shape(name) for name in stored}
    check_weights(weight_shapes(config), shapes, source=source)
    tokenizer = tokenizer_text(source).get("tokenizer")
    progress("reading the checkpoint")
    manifest = Manifest(
        config=config.to_dict(),
        framework=framework,
        compiler="none",
        weights_dtype=weights,
        cache_dtype="float32",
        signatures=["decode", "prefill", "describe"] + ["tokenizer"] * bool(tokenizer),
        prompt_buckets=buckets,
        cache_buckets=[cache_size],
        batch_sizes=[1],
        max_positions=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        **special_ids(config),
        tokenizer=bool(tokenizer),
        checkpoint_digest=weights_digest(config, stored),
        tool_versions=tool_versions(framework),
    )
    with staging(out, version) as staged:
        folder = staged.folder
        _write_model(folder / TFLITE_FILE, config, stored, manifest, progress)
        config.save_pretrained(folder)
        if tokenizer:
            (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        progress("writing the manifest")
        write_manifest(folder, manifest)
    return staged.published


def _write_model(
    path: Path,
    config: OPTConfig,
    stored: Mapping[str, np.ndarray],
    manifest: Manifest,
    progress: Progress,
) -> None:
    from . import graph
    from .weights import constants
    from .writer import write

    dtype = manifest.weights_dtype
    C = manifest.cache_buckets[0]
    graphs = {}
    for S in (1, *manifest.prompt_buckets):
        name = "decode" if S == 1 else f"prefill_{S}"
        progress(f"converting {name}")
        graphs[name] = graph.convert(config, manifest.framework, dtype, S, C)
    progress(f"writing the weights as {dtype}")
    metadata = {TFLITE_MANIFEST_KEY: manifest.to_json().encode()}
    arguments = graph.arguments(config, dtype)
    with path.open("xb") as file:
        write(file, graphs, arguments, dict(constants(config, stored, dtype)), metadata)


def chosen_sizes(
    config: OPTConfig,
    framework: str,
    weights: str,
    prompt_buckets: Sequence[int] | None,
    cache_size: int | None,
) -> tuple[list[int], int]:
    """Prompt buckets and cache size as given, or the defaults.

    Raises:
        ExportError: options that a TFLite export doesn't take.
    """
    if cache_size is None:
        cache_size = min(CACHE_SIZE, config.max_position_embeddings)
    if prompt_buckets is None:
        prompt_buckets = [min(PROMPT_BUCKET, cache_size)]
    for option, value, known in (
        ("framework", framework, ("tf", "jax")),
        ("weights", weights, WEIGHTS),
    ):
        if value not in known:
            raise ExportError(
                f"--{option} should be one of {', '.join(known)} for a TFLite export, "
                f"got {value!r}"
            )
    limit = config.max_position_embeddings
    if not 1 <= cache_size <= limit:
        raise ExportError(
            f"--cache-size should be 1 to {limit}, the model's positions, "
            f"got {cache_size}"
        )
    buckets = sorted(set(prompt_buckets))
    if not buckets or not buckets[0] >= 2 or buckets[-1] > cache_size:
        raise ExportError(
            f"--prompt-buckets should be sizes from 2 to the cache's {cache_size}, "
            f"got {', '.join(map(str, prompt_buckets)) or 'none'}"
        )
    return buckets, cache_size
