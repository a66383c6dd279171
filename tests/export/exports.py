"""Exports that several files need, each made once for all workers of a run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optserve.export.options import ExportOptions
from optserve.export.pipeline import export_checkpoint
from optserve.models.config import OPTConfig
from optserve.runtime.contract import EXTRA_OUTPUTS, generate_name, session_names
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
GENERATE = {"pre_ln": (8, 24)}
"""Tokens per call; the others are asked for logits and caches only."""
FEW_ROWS = {"batch_sizes": (1, 3)}
"""Rows that a compiled export of a golden checkpoint is compiled for."""
PROGRAMS = {"portable": True}
"""A JAX export without plain ops."""
ONE_SHAPE: dict[str, Any] = {"prompt_buckets": (16,), "batch_sizes": (3,), **PROGRAMS}
"""The same of a JAX export, where only the model differs from one with more shapes."""
COMPILED_FOR_ONE: dict[str, Any] = {
    "compiler": "xla",
    "batch_sizes": (1,),
    "generate": (8,),
    "compile_for_this_processor": True,
    "only": ("describe", "prefill", "decode", "score", "generate_8"),
}
"""Of the TensorFlow route, for single rows."""
COMPILED_LOOPS: dict[str, Any] = {
    "compiler": "xla",
    "only": ("serving_default", "generate_8", "generate_24"),
}
"""The same for one row and several, where all but the loop is as without a compiler."""
INT8_COMPILED_LOOPS: dict[str, Any] = {
    "weights": "int8",
    "compiler": "xla",
    "batch_sizes": (1,),
    "only": ("decode", "generate_8", "generate_24"),
}
"""Beside plain ops that keep packed matrices."""
INT8_SESSIONS: dict[str, Any] = {
    "weights": "int8",
    "cache": "int8",
    "sessions": 3,
    "session_slots": 40,
    "generate": (8,),
    "only": ("prefill", "decode", generate_name(8), *session_names([8])),
}
"""Sessions, and what they are compared with."""
MIXED: dict[str, Any] = {
    "framework": "jax",
    "portable": False,
    "prompt_buckets": (16,),
    "batch_sizes": (1,),
    "generate": (8,),
    "only": ("decode", "embed", "score", "serving_default", generate_name(8)),
}
"""A JAX export with plain ops beside its programs."""
INT8_MIXED: dict[str, Any] = {
    **MIXED,
    "weights": "int8",
    "activations": "int16",  # scales stay where they are
    "sessions": 3,
    "session_slots": 40,
    "only": (*MIXED["only"], "describe", "prefill", *session_names([8])),
}
"""The same with sessions, and every signature."""
SHAPES: dict[str, dict[str, Any]] = {
    "pre_ln": {"prompt_buckets": (1, 16), **FEW_ROWS, **PROGRAMS},
    "post_ln_proj": {"prompt_buckets": (1, 16), "batch_sizes": (3,), **PROGRAMS},
}


class Served:
    """A loaded export: signatures as functions of numpy arrays.

    In a session as servers have it, which frees all that it compiled when it goes.
    """

    def __init__(self, path: Path) -> None:
        from optserve.runtime.server.servable import Servable
        from optserve.runtime.server.settings import SessionOptions

        self.path = path
        manifest = read_manifest(path)
        self._servable = Servable(str(path), SessionOptions(), manifest=manifest)
        self.row_shape = manifest.cache_layout.row_shape
        self.width = self.row_shape[-1]

    def __call__(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        signature = self._servable.signatures[name]
        signature.check_dtypes(inputs)
        names = list(signature.outputs)
        outputs = self._servable.run(signature, inputs, names)
        return dict(zip(names, outputs, strict=True))

    @contextlib.contextmanager
    def answering(self, name: str, answer: bool) -> Iterator[None]:
        """With another answer to what was asked when this was loaded."""
        import tensorflow as tf

        session = self._servable._session
        with session.graph.as_default():
            handle = tf.raw_ops.VarHandleOp(
                dtype=tf.bool, shape=[], shared_name=f"optserve_{name}"
            )
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.bool)
            new = tf.compat.v1.placeholder(tf.bool, [])
            assign = tf.raw_ops.AssignVariableOp(resource=handle, value=new)
        before = session.run(value)
        session.run(assign, {new: answer})
        try:
            yield
        finally:
            session.run(assign, {new: before})


def served(case: str, **options: Any) -> Served:
    """``exported``, loaded; the last few stay loaded."""
    path = exported(case, **options)
    model = _loaded.pop(path, None) or Served(path)
    while len(_loaded) >= 3:  # each holds its compiled programs
        del _loaded[next(iter(_loaded))]
    return _loaded.setdefault(path, model)


def exported(
    case: str,
    *,
    framework: str = "tf",
    compiler: str | None = None,
    only: tuple[str, ...] = (),
    **options: Any,
) -> Path:
    """The only version of a golden checkpoint's export with these options.

    With ``only`` these signatures alone are in its graph.
    """
    compiler = compiler or {"tf": "none", "jax": "xla"}[framework]
    few = {"none": {}, "xla": FEW_ROWS}[compiler]
    if framework == "jax":
        few = SHAPES.get(case, ONE_SHAPE)
    generate = GENERATE.get(case, ())
    common = {"framework": framework, "compiler": compiler, "generate": generate}
    return _saved(GOLDEN / case, {**common, **few, **options}, only)


def exported_tiny() -> Path:
    """The only version of the shipped checkpoint's export with default options."""
    return _saved(TINY, {}, ())


def exported_for_edge(
    case: str, framework: str = "tf", weights: str = "float32"
) -> Path:
    """The folder of a golden checkpoint's TFLite file, for 16 tokens and 24 slots."""
    options = {"framework": framework, "weights": weights}
    options |= {"prompt_buckets": [16], "cache_size": 24}
    chosen = ExportOptions(target="tflite", **options)
    return _exported_once(
        _name("edge", case, options),
        lambda out: export_to(out, GOLDEN / case, chosen),
    )


def export_to(
    out: Path, checkpoint: Path, options: ExportOptions | None = None, **more: Any
) -> Path:
    """A version's folder, written in this process and not verified."""
    edge = options is not None and options.target == "tflite"
    with converting_once() if edge else contextlib.nullcontext():
        return export_checkpoint(checkpoint, out, options, verify=False, **more).path


@contextlib.contextmanager
def converting_once() -> Iterator[None]:
    """TFLite graphs hold no weights: those of equal sizes are converted once."""
    from optserve.export.tflite import graph

    convert = graph.convert

    def once(config: OPTConfig, *sizes: Any) -> bytes:
        def write(path: Path) -> None:
            path.write_bytes(convert(config, *sizes))

        return _once(_name("graph", config.to_dict(), *sizes), write).read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "convert", once)
        yield


def export_only(
    out: Path, checkpoint: Path, options: ExportOptions, only: tuple[str, ...]
) -> Path:
    """As ``export_to``, but with these signatures alone."""
    with only_signatures(only):
        return export_to(out, checkpoint, options)


@contextlib.contextmanager
def only_signatures(only: tuple[str, ...]) -> Iterator[None]:
    """Graphs and manifests have no others: tracing, loading and optimising those is
    most of the time of a test that calls none of them. A client needs ``decode``, a
    server's warm-up ``prefill`` as well."""
    from optserve.export.savedmodel import exporter
    from optserve.export.savedmodel.signatures import Signatures

    bodies, names = Signatures.bodies, exporter.signature_names
    extra = {name: EXTRA_OUTPUTS[name] for name in only if name in EXTRA_OUTPUTS}

    def few_bodies(signatures: Signatures) -> dict[str, Any]:
        every = bodies(signatures)
        return {name: every[name] for name in only}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signatures, "bodies", few_bodies)
        patch.setattr(exporter, "EXTRA_OUTPUTS", extra)
        patch.setattr(
            exporter,
            "signature_names",
            lambda options: [name for name in names(options) if name in only],
        )
        yield


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


def release_served() -> None:
    """Let go of those that ``served`` keeps."""
    _loaded.clear()


_loaded: dict[Path, Served] = {}
"""The one asked for last at the end."""


_DEFAULTS = ExportOptions().to_dict()


def _saved(checkpoint: Path, options: dict[str, Any], only: tuple[str, ...]) -> Path:
    chosen = ExportOptions(**options)
    unlike = {
        name: value
        for name, value in chosen.to_dict().items()
        if value != _DEFAULTS[name]
    }

    def export(out: Path) -> Path:
        if only:
            return export_only(out, checkpoint, chosen, only)
        return export_to(out, checkpoint, chosen)

    return _exported_once(_name("saved", checkpoint.name, unlike, *only), export)


def _name(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True)
    begin = "".join(c if c.isalnum() else "_" for c in text[:80])
    return f"{begin}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _exported_once(name: str, export: Callable[[Path], object]) -> Path:
    """Version 1 in the base folder ``name``."""
    return _once(name, export, "1") / "1"


def _once(name: str, write: Callable[[Path], object], last: str = "") -> Path:
    """What is called ``name`` in the run's folder, by whichever worker comes first;
    it is there when ``last`` in it is."""
    path = Path(os.environ[SHARED_FOLDER]) / name
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / last).exists():
            write(path)
    return path
