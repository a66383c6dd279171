"""Which backend an export's options ask for, what it compiles, and what it asks the
processor that it is loaded on. Nothing is traced for that."""

from __future__ import annotations

import pytest
import tensorflow as tf
from optserve.export.options import ExportOptions
from optserve.export.savedmodel import autotune, int8_matmul
from optserve.export.savedmodel.autotune import EXACT_INT8, NATIVE_BFLOAT16
from optserve.export.savedmodel.buckets import Sizes
from optserve.export.savedmodel.choose_backend import chosen_backend
from optserve.runtime.contract import CacheLayout

from tests.export.exports import SMALLEST

SIZES = Sizes(rows=(1, 8), prompt=(1, 16))
FIRST = Sizes(rows=(1,), prompt=(1,))
HERE = {"tuned_for": "this-processor"}
ASKED = {"int8": {NATIVE_BFLOAT16, EXACT_INT8}, "bfloat16": {NATIVE_BFLOAT16}}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setattr(int8_matmul, "available", lambda: True)


def backend(*, int8_activations=False, **options):
    chosen = ExportOptions(**options)
    weights = tf.Variable(tf.zeros([64, 16], chosen.weights))
    return chosen_backend(
        SMALLEST,
        {"decoder.embed_tokens.weight": weights},
        CacheLayout(1, 2, 8, "float32"),
        chosen,
        {"none": Sizes(), "xla": SIZES}[chosen.compiler or "none"],
        int8_activations=int8_activations,
    )


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("compiler", "kind"), [("none", "TFBackend"), ("xla", "MixedBackend")]
)
def test_the_tensorflow_route_compiles_its_loop_at_most(weights, compiler, kind):
    it = backend(weights=weights, compiler=compiler)
    assert type(it).__name__ == kind
    assert it.compiled == Sizes()
    assert it.compiled_loop.rows == (SIZES.rows if compiler == "xla" else ())
    assert set(it.resources) == ASKED.get(weights, set())


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_jax_has_all_programs_where_the_processor_decides(weights):
    it = backend(framework="jax", weights=weights)
    assert type(it).__name__ == "MixedBackend"
    assert (it.compiled, it.compiled_loop.rows) == (SIZES, SIZES.rows)
    assert set(it.resources) == ASKED[weights]


def test_jax_has_no_programs_that_no_processor_needs(monkeypatch):
    float32 = backend(framework="jax")
    assert float32.compiled == Sizes(rows=(1,), prompt=SIZES.prompt)
    assert float32.compiled_loop.rows == (1,) and not float32.resources
    int8 = backend(framework="jax", weights="int8", int8_activations=True)
    assert (int8.compiled, int8.compiled_loop.rows) == (FIRST, (1,))
    assert set(int8.resources) == ASKED["int8"]
    monkeypatch.setattr(autotune, "_answer", lambda find: True)
    for weights in ASKED:
        it = backend(framework="jax", weights=weights, **HERE)
        assert (it.compiled, it.compiled_loop.rows) == (FIRST, (1,))


def test_jax_has_programs_alone_where_plain_ops_are_never_quicker(monkeypatch):
    alone = [
        backend(framework="jax", weights=weights, portable=True)
        for weights in ("float32", "bfloat16", "int8")
    ]
    alone.append(backend(framework="jax", weights="float16"))
    monkeypatch.setattr(autotune, "_answer", lambda find: False)
    alone += [backend(framework="jax", weights=weights, **HERE) for weights in ASKED]
    for it in alone:
        assert type(it).__name__ == "JaxBackend"
        assert (it.compiled, it.compiled_loop.rows) == (SIZES, SIZES.rows)
        assert not it.resources
