"""Exports that several files need, each made once for all workers of a run."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from optserve.export.options import ExportOptions
from optserve.export.pipeline import export_checkpoint
from optserve.models.config import OPTConfig
from optserve.runtime.model_dir import read_manifest
from optserve.runtime.sampling import Sampling

from tests.conftest import SHARED_FOLDER

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY = Path(__file__).parents[2] / "models" / "tiny_shakespeare"
CASES = ("bias_free_gelu", "no_final_ln", "untied_head", "post_ln_proj", "pre_ln")
SMALLEST = OPTConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=1,
    ffn_dim=32,
    num_attention_heads=2,
    max_position_embeddings=24,
)
"""An architecture for exports of which only the way counts."""
FEW_ROWS = {"batch_sizes": (1, 3)}
FEW_SHAPES = {"prompt_buckets": (1, 16), **FEW_ROWS}
"""What a compiled export of a golden checkpoint is compiled for."""
ONE_SHAPE = {"prompt_buckets": (16,), "batch_sizes": (3,), "generate": ()}
"""The same, where only the model differs from one that is compiled for more."""


class Served:
    """A loaded export: signatures as functions of numpy arrays."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self.path = path
        self._model = tf.saved_model.load(str(path))
        self.row_shape = read_manifest(path).cache_layout.row_shape
        self.width = self.row_shape[-1]

    def __call__(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        import tensorflow as tf

        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        outputs = self._model.signatures[name](**tensors)
        return {key: value.numpy() for key, value in outputs.items()}

    @contextlib.contextmanager
    def answering(self, name: str, answer: bool) -> Iterator[None]:
        """With another answer to what was asked when this was loaded."""
        import tensorflow as tf

        handle = self._model.resources[name].resource_handle
        value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.bool)
        tf.raw_ops.AssignVariableOp(resource=handle, value=tf.constant(answer))
        try:
            yield
        finally:
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def served(case: str, **options: Any) -> Served:
    """``exported``, loaded; the last few stay loaded."""
    return _loaded(exported(case, **options))


def exported(
    case: str, *, framework: str = "tf", compiler: str | None = None, **options: Any
) -> Path:
    """The only version of a golden checkpoint's export with these options."""
    compiler = compiler or {"tf": "none", "jax": "xla"}[framework]
    few = {"none": {}, "xla": FEW_ROWS}[compiler]
    if framework == "jax":
        few = FEW_SHAPES if case in CASES[-2:] else ONE_SHAPE
    generate = (8, 24) if case == "pre_ln" else (8,)
    common = {"framework": framework, "compiler": compiler, "generate": generate}
    return _saved(GOLDEN / case, {**common, **few, **options})


def exported_tiny() -> Path:
    """The only version of the shipped checkpoint's export with default options."""
    return _saved(TINY, {})


def exported_for_edge(
    case: str, framework: str = "tf", weights: str = "float32"
) -> Path:
    """The folder of a golden checkpoint's TFLite file, for 16 tokens and 24 slots."""
    options = {"framework": framework, "weights": weights}
    options |= {"prompt_buckets": [16], "cache_size": 24}
    chosen = ExportOptions(target="tflite", **options)
    return _once(
        _name("edge", case, options),
        lambda out: export_to(out, GOLDEN / case, chosen),
    )


def export_to(
    out: Path, checkpoint: Path, options: ExportOptions | None = None, **more: Any
) -> Path:
    """A version's folder, written in this process and not verified."""
    return export_checkpoint(checkpoint, out, options, verify=False, **more).path


def expected(case: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of the Transformers package."""
    return dict(np.load(GOLDEN / case / "expected.npz"))


def choosing(rows: int, **changes: Any) -> dict[str, np.ndarray]:
    """Inputs of ``generate_{N}`` that say how tokens are chosen: greedily, and nothing
    ends a row, but for ``changes``."""
    nothing = np.full((rows, 1), -1, np.int32)
    usual = {
        "history": nothing,
        "stop_ids": nothing,
        "bias_ids": nothing,
        "bias": np.zeros((rows, 1), np.float32),
        **Sampling(temperature=0, seed=7 + (9 << 32)).params()._asdict(),
    }
    usual = {
        name: np.broadcast_to(x, (rows, *x.shape[1:])) for name, x in usual.items()
    }
    return usual | {
        name: np.asarray(value, usual[name].dtype) for name, value in changes.items()
    }


def int32(*values: int) -> np.ndarray:
    """A vector."""
    return np.array(values, np.int32)


@functools.lru_cache(maxsize=3)  # each holds its compiled programs
def _loaded(path: Path) -> Served:
    return Served(path)


def _saved(checkpoint: Path, options: dict[str, Any]) -> Path:
    return _once(
        _name("saved", checkpoint.name, options),
        lambda out: export_to(out, checkpoint, ExportOptions(**options)),
    )


def _name(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True)
    return "".join(c if c.isalnum() else "_" for c in text)


def _once(name: str, export: Callable[[Path], object]) -> Path:
    """Version 1 in the base folder ``name``, by whichever worker comes first."""
    out = Path(os.environ[SHARED_FOLDER]) / name
    with open(f"{out}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "1").exists():
            export(out)
    return out / "1"
