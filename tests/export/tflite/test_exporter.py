"""TFLite exports of the golden checkpoints against what Transformers wrote."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import pytest
from optserve.export.errors import ExportError
from optserve.export.int4 import quantize_blocks
from optserve.export.options import ExportOptions
from optserve.export.weights import quantize
from optserve.models.checkpoints import open_weights
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.litert import LiteRTTransport

from tests.export.exports import CASES, GOLDEN, expected, export_to
from tests.export.exports import exported_for_edge as exported

EVERY_CASE = [(case, "tf") for case in CASES] + [
    ("pre_ln", "jax"),
    ("post_ln_proj", "jax"),
    ("bias_free_gelu", "jax"),
]


def feed(transport, ids, cache=None):
    """Logits and cache rows of one call."""
    ids = np.asarray(ids, np.int32).reshape(1, -1)
    inputs = {"input_ids": ids, "input_length": np.array([ids.size], np.int32)}
    name = "prefill"
    if cache is not None:
        name = "decode"
        inputs["cache"] = cache
        inputs["cache_length"] = np.array([cache.shape[1]], np.int32)
    outputs = transport.call(Call(name, inputs)).outputs
    return outputs["logits"][0], outputs["new_cache"][:, : ids.size]


@pytest.mark.parametrize(("case", "framework"), EVERY_CASE)
def test_logits_and_cache_are_the_references(case, framework):
    golden = expected(case)
    transport = LiteRTTransport(exported(case, framework), threads=1)
    for row in range(3):
        ids = golden["input_ids"][row]
        logits, cache = feed(transport, ids[:7])
        np.testing.assert_allclose(logits, golden["logits"][row, 6], atol=2e-4)
        for layer in range(cache.shape[2]):
            keys, values = cache[0, :, layer].transpose(1, 2, 0, 3)
            for name, actual in (("key", keys), ("value", values)):
                reference = golden[f"{name}_{layer}"][row][:, :7]
                np.testing.assert_allclose(actual, reference, atol=2e-4)
        for position in range(7, 11):
            logits, new = feed(transport, ids[position], cache)
            cache = np.concatenate([cache, new], axis=1)
            reference = golden["logits"][row, position]
            np.testing.assert_allclose(logits, reference, atol=2e-4)


def test_several_tokens_continue_a_cache():
    reference = expected("pre_ln")
    transport = LiteRTTransport(exported("pre_ln"), threads=1)
    ids = reference["input_ids"][0]
    _, cache = feed(transport, ids[:4])
    logits, _ = feed(transport, ids[4:], cache)
    np.testing.assert_allclose(logits, reference["logits"][0, -1], atol=2e-4)


@pytest.mark.parametrize(
    ("weights", "worst"), [("float16", 2e-3), ("int8", 0.05), ("int4", 0.3)]
)
def test_smaller_weights_stay_close(weights, worst):
    reference = expected("pre_ln")
    transport = LiteRTTransport(exported("pre_ln", weights=weights), threads=1)
    errors, scale = [], np.abs(reference["logits"]).max()
    for row in range(3):
        logits, _ = feed(transport, reference["input_ids"][row])
        errors.append(np.abs(logits - reference["logits"][row, -1]).max())
    assert 0 < max(errors) < worst * scale


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_every_matrix_is_in_the_file_once(weights):
    data = (exported("pre_ln", weights=weights) / "model.tflite").read_bytes()
    stored = open_weights(GOLDEN / "pre_ln")
    for name in stored:
        if name.endswith("lm_head.weight") or stored[name].ndim < 2:
            continue
        matrix = np.asarray(stored[name], np.float32)
        if "embed_positions" not in name:
            if weights == "int8":
                matrix = quantize(matrix)[0]
            matrix = matrix.astype(weights)
        assert data.count(matrix.tobytes()) == 1, name


def test_int4_rounds_to_the_nearest_of_sixteen():
    matrix = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    matrix[2, 32:64] = 0
    values, scales = quantize_blocks(matrix)
    assert values.min() >= -8 and values.max() <= 7 and scales.min() > 0
    wide = scales.astype(np.float32).repeat(32, axis=1)
    error = np.abs(values * wide - matrix)
    assert (error <= 1.51 * wide).all()
    assert error.mean() < 0.27 * wide.mean()
    assert not values[2, 32:64].any()


def test_int4_says_what_it_cannot_divide(tmp_path):
    sizes = {"hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 64}
    sizes["num_hidden_layers"] = 1
    config = OPTConfig.from_pretrained(GOLDEN / "pre_ln", **sizes)
    write_random_checkpoint(tmp_path / "in", config)
    with pytest.raises(ExportError, match=r"multiples of 32 long.*q_proj.*has 24"):
        export_to(
            tmp_path / "out",
            tmp_path / "in",
            ExportOptions(target="tflite", weights="int4"),
        )
    assert not list((tmp_path / "out").glob("*"))


def test_both_frameworks_store_the_same_bytes():
    sizes = [
        (exported("pre_ln", framework) / "model.tflite").stat().st_size
        for framework in ("tf", "jax")
    ]
    assert abs(sizes[0] - sizes[1]) < 0.2 * sizes[0]


def test_signatures_and_folder():
    from ai_edge_litert.interpreter import Interpreter

    folder = exported("pre_ln")
    manifest = json.loads(
        (folder / "assets.extra" / "optserve_manifest.json").read_text()
    )
    assert manifest["prompt_buckets"] == [16] and manifest["cache_buckets"] == [24]
    assert manifest["batch_sizes"] == [1]
    assert set(manifest["files"]) == {"model.tflite", "config.json"}
    runtime = Interpreter(str(folder / "model.tflite"))
    signatures = runtime.get_signature_list()
    assert list(signatures) == ["decode", "prefill_16"]
    caches = {f"{kind}_{i}" for kind in ("key", "value") for i in range(3)}
    assert set(signatures["decode"]["inputs"]) == caches | {"input_ids", "cache_length"}
    assert set(signatures["decode"]["outputs"]) == {"logits", "new_cache"}
    assert set(signatures["prefill_16"]["inputs"]) == (
        caches | {"input_ids", "cache_length", "input_length"}
    )
    details = runtime.get_signature_runner("prefill_16").get_output_details()
    assert details["new_cache"]["shape"].tolist() == [1, 16, 3, 2, 4, 8]


def test_weights_beyond_the_format_s_two_gibibytes(monkeypatch):
    from optserve.export.tflite import writer as tflite_file

    inline = tflite_file.write.__kwdefaults__
    monkeypatch.setitem(inline, "inline_limit", 0)
    with tempfile.TemporaryDirectory() as out:
        folder = export_to(
            out,
            GOLDEN / "pre_ln",
            ExportOptions(target="tflite", prompt_buckets=[16], cache_size=24),
        )
        reference = expected("pre_ln")
        logits, _ = feed(LiteRTTransport(folder, threads=1), reference["input_ids"][0])
        np.testing.assert_allclose(logits, reference["logits"][0, -1], atol=2e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "bfloat16"}, "float32, float16, int8, int4"),
        ({"framework": "torch"}, "tf, jax"),
        ({"cache_size": 4000}, "the model's positions"),
        ({"cache_size": 8, "prompt_buckets": [16]}, "to the cache's 8, got 16"),
        ({"prompt_buckets": []}, "got none"),
    ],
)
def test_unusable_options_are_refused(tmp_path, options, said):
    with pytest.raises(ExportError, match=said):
        export_to(
            tmp_path / "out",
            GOLDEN / "pre_ln",
            ExportOptions(target="tflite", **options),
        )
    assert not (tmp_path / "out").exists()


def test_a_version_is_never_overwritten(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(ExportError, match="never overwritten"):
        export_to(tmp_path, GOLDEN / "pre_ln", version=1)
