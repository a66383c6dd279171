"""From a checkpoint to a SavedModel that obeys the graph contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np

from ...models.checkpoints import open_weights, resolve
from ...models.config import OPTConfig
from ...models.tokenizer import Tokenizer
from ...models.weights import check_weights, weight_shapes
from ...runtime.contract import (
    CACHE_DTYPES,
    WEIGHT_DTYPES,
    CacheLayout,
    Manifest,
    generate_name,
)
from ..errors import ExportError
from ..publish import check_version, staging, write_manifest
from ..weights import packed_weights, weights_digest
from .buckets import Sizes, chosen_sizes
from .reproducible import settle_fingerprint, without_locations
from .warmup import write_warmup

FRAMEWORKS = ("tf", "jax")
COMPILERS = ("none", "xla")
GENERATE = (1, 8, 32)
SIGNATURES = ("serving_default", "prefill", "decode", "score", "embed")

_TOOLS = {"tf": ("tensorflow",), "jax": ("tensorflow", "jax", "jaxlib")}

Progress = Callable[[str], None]


def export_savedmodel(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    framework: str = "tf",
    compiler: str | None = None,
    weights: str = "float32",
    cache: str = "float32",
    generate: Sequence[int] = GENERATE,
    prompt_buckets: Sequence[int] | None = None,
    cache_buckets: Sequence[int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    portable: bool = False,
    version: int | None = None,
    revision: str | None = None,
    progress: Progress = lambda message: None,
) -> Path:
    """Write ``OUT/VERSION``, a SavedModel with every signature of the contract.

    Args:
        checkpoint: a directory in Hugging Face's layout, or a hub id.
        out: the model's base folder; made if needed.
        framework: ``"tf"`` or ``"jax"``.
        compiler: ``"none"`` or ``"xla"``; None is what the framework can do on a stock
            server (``none`` for tf; jax always needs XLA).
        weights: dtype of the stored matrices, one of ``WEIGHT_DTYPES``.
        cache: dtype of the cache's numbers, one of ``CACHE_DTYPES``.
        generate: the N of the ``generate_{N}`` signatures, ascending; may be empty.
        prompt_buckets: sizes of S to compile for, None for a sensible choice. The
            graph rounds up to them by itself, so that clients need not.
        cache_buckets: sizes of C likewise.
        batch_sizes: sizes of B likewise.
        portable: leave out the int8 kernels that TensorFlow has on x86-64 alone.
        version: the folder's number; the next free one if None.
        revision: of a hub checkpoint.
        progress: called with a short message as the work goes on.

    Returns:
        The version's folder. It appears whole or not at all.

    Raises:
        ExportError: options that exclude each other, an unusable checkpoint, or a
            version that exists.
    """
    compiler = checked(framework, compiler, weights, cache)
    if list(generate) != sorted(set(generate)) or min(generate, default=1) < 1:
        raise ExportError(
            f"--generate should be ascending numbers from 1 on, got {list(generate)}"
        )
    check_version(out, version)
    source = resolve(checkpoint, revision=revision)
    config = OPTConfig.from_pretrained(source)
    stored = open_weights(source)
    shapes = {name: stored.shape(name) for name in stored}
    check_weights(weight_shapes(config), shapes, source=source)
    try:
        layout = CacheLayout(
            config.num_hidden_layers, config.num_attention_heads, config.head_dim, cache
        )
    except ValueError as error:
        raise ExportError(str(error)) from None
    sizes = (
        Sizes()
        if compiler == "none"
        else chosen_sizes(
            config.max_position_embeddings,
            prompt_buckets,
            cache_buckets,
            batch_sizes,
            framework=framework,
        )
    )
    texts = tokenizer_text(source)
    progress(f"reading the checkpoint, packing its weights as {weights}")
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(weights_digest, config, stored)
        packed = {
            name: _variable(name, array)
            for name, array in packed_weights(config, stored, weights)
        }
    manifest = Manifest(
        config=config.to_dict(),
        framework=framework,
        compiler=compiler,
        weights_dtype=weights,
        cache_dtype=cache,
        signatures=[*SIGNATURES, *map(generate_name, generate), "describe", *texts],
        generate=list(generate),
        batch_sizes=list(sizes.rows),
        compiled_prompts=list(sizes.prompt),
        compiled_caches=list(sizes.cache),
        max_positions=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        **special_ids(config),
        tokenizer="tokenizer" in texts,
        checkpoint_digest=digest.result(),
        tool_versions=tool_versions(framework),
    )
    texts["describe"] = manifest.to_json()
    with staging(out, version) as staged:
        _write(
            staged.folder,
            config,
            packed,
            layout,
            manifest,
            texts,
            sizes,
            portable,
            progress,
        )
        progress("writing the manifest")
        write_manifest(staged.folder, manifest)
    return staged.published


def _write(
    folder: Path,
    config: OPTConfig,
    stored: Mapping[str, Any],
    layout: CacheLayout,
    manifest: Manifest,
    texts: Mapping[str, str],
    sizes: Sizes,
    portable: bool,
    progress: Progress,
) -> None:
    import tensorflow as tf

    from .backends import JaxBackend, TFBackend
    from .signatures import Signatures

    backend = {"tf": TFBackend, "jax": JaxBackend}[manifest.framework]
    computing = backend(
        config,
        stored,
        layout,
        compiler=manifest.compiler,
        tokens=max(manifest.generate, default=1),
        sizes=sizes,
        portable=portable,
    )
    module = Signatures(config, computing, stored, layout, texts, manifest.generate)
    progress("tracing the signatures")
    with without_locations() if manifest.framework == "jax" else nullcontext():
        concrete = module.concrete()
    progress("writing the SavedModel")
    tf.saved_model.save(
        module,
        str(folder),
        concrete,
        tf.saved_model.SaveOptions(save_debug_info=False),
    )
    write_warmup(folder, manifest, computing.sizes, computing.loop_sizes)
    settle_fingerprint(folder)


def _variable(name: str, array: np.ndarray) -> Any:
    """A variable in the array's memory."""
    import tensorflow as tf

    bits: Any = array.view(f"u{array.itemsize}")
    held = tf.experimental.dlpack.from_dlpack(bits.__dlpack__())
    value = tf.bitcast(held, array.dtype.name)
    return tf.Variable(value, trainable=False, name=name)


def checked(framework: str, compiler: str | None, weights: str, cache: str) -> str:
    """The compiler, a default put in.

    Raises:
        ExportError: options that exclude each other.
    """
    if compiler is None:
        compiler = "xla" if framework == "jax" else "none"
    for option, value, known in (
        ("framework", framework, FRAMEWORKS),
        ("compiler", compiler, COMPILERS),
        ("weights", weights, WEIGHT_DTYPES),
        ("cache", cache, CACHE_DTYPES),
    ):
        if value not in known:
            raise ExportError(
                f"--{option} should be one of {', '.join(known)}, got {value!r}"
            )
    if framework == "jax" and compiler == "none":
        raise ExportError(
            "a JAX graph runs only with XLA: leave --compiler out, or export with "
            "--framework tf for a server without XLA"
        )
    return compiler


def tokenizer_text(source: Path) -> dict[str, str]:
    """The tokenizer's JSON by its signature's name, nothing without a tokenizer."""
    if not any((source / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return {}
    return {"tokenizer": Tokenizer.from_directory(source).to_json()}


def special_ids(config: OPTConfig) -> dict[str, Any]:
    """The special tokens that a configuration names, as the manifest has them."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {n: value for n in names if (value := getattr(config, n)) is not None}


def tool_versions(framework: str) -> dict[str, str]:
    """Versions of what an export was made with."""
    return {name: installed(name) for name in ("optserve", *_TOOLS[framework])}
