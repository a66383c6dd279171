"""Whether activations may be int8: measured on a text, a layer at a time.

The model is computed four times: as the checkpoint has it, to see how large its
activations get; with its weights in int8; and with its activations in int8 as well, and
in the 7 bits that they get on a processor without VNNI. The first gives the scales that
are moved (``smoothing.py``); the others are compared on parts of the text that it has
not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ...models.config import OPTConfig
from ...models.layer_context import LayerContext
from ...models.regular_files import read_regular_file
from ...models.tf import model as opt
from ...models.tokenizer import Tokenizer
from ...models.weights import PackedWeight, params_from_weights
from ..checkpoint import Checkpoint
from ..errors import ExportError
from ..options import ExportOptions
from ..smoothing import SmoothedWeights, Smoothing, smoothing
from ..weights import is_matrix, quantize
from . import int8_matmul

DEFAULT_TEXT = Path(__file__).parent / "calibration.txt"
MOST_RAISED = 1e-3
"""By what share int8 activations may raise the loss to be chosen by default."""

_WINDOW, _MOST_WINDOWS = 128, 16  # tokens, and how many times so many
_MOST_WEIGHTS = 1_500_000_000  # beyond, measuring takes minutes: only if asked for
_TEXT_LIMIT = 64 << 20  # bytes


@dataclass(frozen=True)
class Activations:
    """What int8 weights are multiplied with: ``dtype`` int16, in two int8 halves, or
    int8. ``losses`` in nats per token of what was measured, by dtype; of ``uint7`` on
    processors without VNNI, where that stands for int8."""

    dtype: str
    smoothing: Smoothing | None = None
    losses: Mapping[str, float] | None = None

    def weights(self, source: Checkpoint) -> Mapping[str, np.ndarray]:
        """The checkpoint's, with the scales moved."""
        if self.smoothing is None:
            return source.weights
        return SmoothedWeights(source.weights, source.config, self.smoothing)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"dtype": self.dtype, "losses": dict(self.losses or {})}


def choose_activations(source: Checkpoint, options: ExportOptions) -> Activations:
    """As ``options.activations`` says; ``auto`` takes int8 where it costs nothing.

    Raises:
        ExportError: a text that cannot be read or is too short.
    """
    ids = _windows(source, options.calibrate)
    asked = options.activations
    if asked == "auto" and (ids is None or _count(source) > _MOST_WEIGHTS):
        asked = "int16"
    if asked == "int16":
        return Activations("int16")
    if ids is None:
        ids = _any_tokens(source.config)
    config, moved = source.config, calibrate(source.config, source.weights, ids[::2])
    smoothed = SmoothedWeights(source.weights, config, moved)
    by_dtype: dict[str, Mapping[str, np.ndarray]] = {
        "int16": source.weights,
        "int8": smoothed,
        "uint7": smoothed,
    }
    losses = {
        dtype: round(mean_loss(config, weights, ids[1::2], dtype), 6)
        for dtype, weights in by_dtype.items()
    }
    raised = max(losses["int8"], losses["uint7"]) / losses["int16"] - 1
    if asked == "auto" and not raised <= MOST_RAISED:
        return Activations("int16", losses=losses)
    return Activations("int8", moved, losses)


def calibrate(
    config: OPTConfig, weights: Mapping[str, np.ndarray], ids: np.ndarray
) -> Smoothing:
    """The scales to move, from the activations of ``ids`` [B,S]."""
    largest = []

    def look(p: dict[str, Any]) -> None:
        seen = [p[name]["weight"].largest for name in ("q_proj", "fc1", "fc2")]
        largest.append(np.concatenate([x.numpy() for x in seen]))

    _hidden(config, weights, ids, _Watched, look)
    return smoothing(config, weights, np.stack(largest))


def mean_loss(
    config: OPTConfig, weights: Mapping[str, np.ndarray], ids: np.ndarray, dtype: str
) -> float:
    """Nats per token of ``ids`` [B,S] with int8 weights.

    ``dtype`` is the activations': int16, which is taken to lose nothing, int8 or uint7.
    """

    def pack(matrix: np.ndarray) -> _Rounded:
        return _Rounded(matrix, inputs=dtype)

    hidden, head = _hidden(config, weights, ids, pack)
    losses = []
    for row, x in zip(ids, hidden, strict=True):  # logits of all rows are gigabytes
        logits = opt.linear(x[:-1], head)
        losses.append(
            tf.nn.sparse_softmax_cross_entropy_with_logits(row[1:], logits).numpy()
        )
    return float(np.mean(losses))


class _Watched(PackedWeight):
    """A matrix that keeps its inputs' ``largest`` [in] by column."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = tf.constant(np.asarray(matrix, np.float32))
        self.largest: Any = None

    def matmul(self, x):
        self.largest = tf.reduce_max(tf.abs(x), axis=0)
        return tf.matmul(x, self._matrix, transpose_b=True)

    def take(self, rows):
        return tf.gather(self._matrix, rows)


class _Rounded(PackedWeight):
    """A matrix rounded to int8, in float32, for ``inputs`` of a type."""

    def __init__(self, matrix: np.ndarray, *, inputs: str) -> None:
        values, scale = quantize(matrix)
        self._matrix = tf.constant(values * scale[:, None])
        self._inputs = inputs

    def matmul(self, x):
        if self._inputs == "int8":
            rounded = int8_matmul.round_to_int8(x)
            x = tf.cast(rounded.parts, tf.float32) * rounded.scale
        elif self._inputs == "uint7":
            parts, scale, lowest = int8_matmul.round_to_seven_bits(x)
            x = tf.cast(parts[:-1], tf.float32) * scale + lowest
        return tf.matmul(x, self._matrix, transpose_b=True)

    def take(self, rows):
        return tf.gather(self._matrix, rows)


def _hidden(
    config: OPTConfig,
    weights: Mapping[str, np.ndarray],
    ids: np.ndarray,
    pack: Callable[[np.ndarray], PackedWeight],
    after_layer: Callable[[dict[str, Any]], None] = lambda p: None,
) -> tuple[Any, Any]:
    """Hidden states [B,S,W] of ``ids`` [B,S], and the head; one layer in memory."""
    names = params_from_weights(config, {name: name for name in weights})

    def load(name: Any) -> Any:
        if isinstance(name, dict):
            return {key: load(value) for key, value in name.items()}
        if name is None:
            return None
        value = weights[name]
        matrix = is_matrix(name)
        return pack(value) if matrix else tf.constant(np.asarray(value, np.float32))

    tied = config.tie_word_embeddings
    unused = ("layers", "lm_head") if tied else ("layers",)
    params = {key: load(value) for key, value in names.items() if key not in unused}
    B, S = ids.shape
    x = opt.embed(
        config,
        params,
        opt.take(params["embed_tokens"], ids),
        np.broadcast_to(np.arange(S, dtype=np.int32), [B, S]),
    )
    seen = opt.causal_mask(tf.ones([B, S], tf.int32), S, 0)
    bias = tf.where(seen, 0.0, tf.float32.min)
    context = LayerContext(config, B, bias, opt.append)
    x = tf.reshape(x, [B * S, config.hidden_size])
    for layer in names["layers"]:
        p = load(layer)
        x, _, _ = opt.layer(context, p, x, None)
        after_layer(p)
    x = opt.final_projection(config, params, x)
    return tf.reshape(x, [B, S, config.embed_dim]), opt.head(config, params)


def _windows(source: Checkpoint, file: str | None) -> np.ndarray | None:
    """Parts [n,S] of a text as the model's ids; None without a tokenizer that knows
    its words."""
    if source.tokenizer is None:
        if file is not None:
            raise ExportError("--calibrate needs a checkpoint with a tokenizer")
        return None
    tokenizer = Tokenizer.from_json(source.tokenizer)
    text = _read(Path(file) if file is not None else DEFAULT_TEXT)
    ids = tokenizer.encode(text, add_special_tokens=False)
    prefix = tokenizer.prefix
    size = min(_WINDOW, source.config.max_position_embeddings) - len(prefix)
    starts = range(0, len(ids) - size + 1, size)[:_MOST_WINDOWS]
    if len(starts) < 2 and file is None:
        return None
    if len(starts) < 2:
        raise ExportError(
            f"{file} has {len(ids)} tokens: a text to calibrate with has {2 * size} or "
            "more"
        )
    return np.array([prefix + ids[at : at + size] for at in starts], np.int32)


def _read(path: Path) -> str:
    try:
        return read_regular_file(path, limit=_TEXT_LIMIT).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExportError(f"cannot read the text {path}: {reason}") from None


def _any_tokens(config: OPTConfig) -> np.ndarray:
    """Ids [n,S] for a checkpoint without a tokenizer."""
    size = min(_WINDOW, config.max_position_embeddings)
    drawn = np.random.default_rng(0).integers(config.vocab_size, size=(4, size))
    return drawn.astype(np.int32)


def _count(source: Checkpoint) -> int:
    """How many numbers the weights have."""
    shapes = (source.weights.shape(name) for name in source.weights)
    return sum(int(np.prod(shape)) for shape in shapes)
