"""Checkpoints of any size with random weights, written tensor by tensor.

    python -m optserve.models.examples.random_checkpoint 1.3b opt-1.3b --dtype bfloat16

For measurements and full-size tests: right shapes and scales, no meaning.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..checkpoints import LazyArray, save_weights
from ..checkpoints.mapped import DTYPES
from ..config import OPTConfig
from ..presets import PRESETS
from ..weights import weight_shapes

_CHUNK = 1 << 22  # numbers drawn at a time: 16 MB in float32


def write_random_checkpoint(
    directory: str | os.PathLike[str],
    config: OPTConfig,
    *,
    dtype: str = "float32",
    seed: int = 0,
    format: str = "safetensors",
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write ``config.json`` and weights drawn as for training; the directory.

    Matrices are normal with ``config.init_std``; norms are near 1 and biases near 0,
    with the same spread, so that no weight could be left out unnoticed. Memory: one
    tensor. The same seed gives the same numbers.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype should be float32, bfloat16 or float16, got {dtype!r}")
    config.save_pretrained(directory)
    save_weights(
        directory,
        _random_weights(config, DTYPES[dtype], seed),
        format=format,
        max_shard_size=max_shard_size,
    )
    return Path(directory)


def _random_weights(
    config: OPTConfig, dtype: np.dtype, seed: int
) -> Iterator[tuple[str, LazyArray]]:
    for i, (name, shape) in enumerate(weight_shapes(config).items()):
        mean = 1.0 if name.endswith("layer_norm.weight") else 0.0

        def read(shape=shape, mean=mean, key=(seed, i)) -> np.ndarray:
            rng = np.random.default_rng(key)
            array = np.empty(shape, dtype)
            flat = array.reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                part = flat[start : start + _CHUNK]
                drawn = rng.standard_normal(part.size, np.float32)
                part[:] = drawn * config.init_std + mean
            return array

        yield name, LazyArray(shape, dtype, read)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint.")
    parser.add_argument("preset", choices=list(PRESETS), metavar="PRESET")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = OPTConfig.preset(args.preset)
    print(write_random_checkpoint(args.out, config, dtype=args.dtype, seed=args.seed))


if __name__ == "__main__":
    main()
