"""Scales moved from activations into the weights before them, so that int8 fits.

A few of a model's channels have activations far larger than the others', and one scale
for all leaves these few bits. Dividing a channel and multiplying the column of the
matrix that it meets changes nothing but that (SmoothQuant, arXiv:2211.10438). Here the
division is done once, at export, in what computes the channel: a norm's weight and
bias, or, since relu lets positive factors through, the rows of the matrix before it.

Factors are powers of two: multiplying by them is exact, so that a model with its scales
moved computes the same numbers to the last bit, until its weights are rounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..models.config import OPTConfig
from ..models.weights import weight_shapes

SMOOTHING_PATH = "assets.extra/smoothing.npy"
"""Where a version keeps its exponents, so that its weights can be checked."""

_LARGEST = 12  # an exponent: what is still smaller stays as small
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_INTO_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Smoothing:
    """Exponents [L, 2·E + F] int8: channel = 2^exponent times what the matrices get.

    The channels are, one after the other, those into attention's projections [E],
    into ``fc1`` [E] and into ``fc2`` [F].
    """

    exponents: np.ndarray

    @classmethod
    def none(cls, config: OPTConfig) -> Smoothing:
        """That changes nothing."""
        E, F = config.hidden_size, config.ffn_dim
        return cls(np.zeros((config.num_hidden_layers, 2 * E + F), np.int8))

    def save(self, folder: Path) -> None:
        """Write it into a version's folder."""
        path = folder / SMOOTHING_PATH
        path.parent.mkdir(exist_ok=True)
        np.save(path, self.exponents, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, config: OPTConfig) -> Smoothing:
        """A version's; that which changes nothing if it keeps none.

        Raises:
            ValueError: the file holds something else.
        """
        path, none = folder / SMOOTHING_PATH, cls.none(config)
        if not path.is_file():
            return none
        exponents = np.load(path, allow_pickle=False)
        if (exponents.shape, exponents.dtype) != (none.exponents.shape, np.int8):
            raise ValueError(f"{path} does not hold this model's exponents")
        return cls(exponents)


def movable(config: OPTConfig) -> tuple[bool, bool]:
    """Whether scales can be moved out of what norms give, and out of ``fc1``'s rows.

    A norm whose output is also added to something, after which the sum would be
    another one, keeps its scales, and so does what a gelu comes after.
    """
    norms = config.do_layer_norm_before and config.layer_norm_elementwise_affine
    return norms, config.activation_function == "relu"


def smoothing(
    config: OPTConfig, weights: Mapping[str, np.ndarray], largest: np.ndarray
) -> Smoothing:
    """Exponents that share each channel's size between activation and weights.

    Args:
        config: the architecture.
        weights: the checkpoint's, by canonical name.
        largest: each channel's largest activation, as :class:`Smoothing` orders them.
    """
    E = config.hidden_size
    exponents = Smoothing.none(config).exponents
    norms, relu = movable(config)
    parts = [(_INTO_ATTENTION, slice(E), norms), (("fc1",), slice(E, 2 * E), norms)]
    parts.append((("fc2",), slice(2 * E, None), relu))
    for i in range(config.num_hidden_layers):
        for names, at, moves in parts:
            if not moves:
                continue
            columns = [
                np.abs(np.asarray(weights[f"decoder.layers.{i}.{name}.weight"])).max(0)
                for name in names
            ]
            weight = np.max(columns, axis=0).astype(np.float32)
            exponents[i, at] = _exponents(largest[i, at], weight)
    return Smoothing(exponents)


def _exponents(activation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Of sqrt(activation / weight) by channel, without what all have in common."""
    used = (activation > 0) & (weight > 0)
    if not used.any():
        return np.zeros(len(activation), np.int8)
    ratio = np.where(used, activation, 1) / np.where(used, weight, 1)
    half = 0.5 * np.log2(ratio)
    half = np.where(used, half - np.median(half[used]), 0)
    return np.clip(np.rint(half), -_LARGEST, _LARGEST).astype(np.int8)


class SmoothedWeights(Mapping[str, np.ndarray]):
    """A checkpoint's weights with their scales moved, computed when asked for."""

    def __init__(self, weights: Any, config: OPTConfig, smoothing: Smoothing) -> None:
        """``weights`` are a checkpoint's, by canonical name."""
        self._weights, self._names = weights, weight_shapes(config)
        factors = np.exp2(smoothing.exponents.astype(np.float32))
        E = config.hidden_size
        self._attention, self._fc1, self._fc2 = np.split(factors, [E, 2 * E], axis=1)

    def __getitem__(self, name: str) -> np.ndarray:
        array, named = self._weights[name], _LAYER.fullmatch(name)
        if named is None:
            return array
        layer, part, leaf = int(named[1]), named[2], named[3]
        rows, columns = self._factors(layer, part)
        if leaf == "weight" and columns is not None:
            array = np.asarray(array, np.float32) * columns
        if rows is not None:
            by_row = rows if array.ndim == 1 else rows[:, None]
            array = np.asarray(array, np.float32) / by_row
        return array

    def _factors(
        self, layer: int, part: str
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What a part's results are divided by, and its columns multiplied."""
        attention, fc1, fc2 = (
            x[layer] for x in (self._attention, self._fc1, self._fc2)
        )
        if part in _INTO_ATTENTION:
            return None, attention
        return {
            "self_attn_layer_norm": (attention, None),
            "final_layer_norm": (fc1, None),
            "fc1": (fc2, fc1),
            "fc2": (None, fc2),
        }.get(part, (None, None))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one weight."""
        return self._names[name]
