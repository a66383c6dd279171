"""Both routes' SavedModels against the outputs of Transformers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.export.savedmodel import exporter, int8_matmul
from optserve.export.savedmodel.signatures import Signatures
from optserve.models.config import OPTConfig
from optserve.runtime.contract import CacheLayout, Manifest, signature
from optserve.runtime.model_dir import changed_files, read_manifest
from optserve.runtime.server.serving_error import ServingError

from tests.export.exports import (
    CASES,
    GOLDEN,
    expected,
    export_to,
    exported,
    int32,
    served,
)

ROUTES = ("tf", "jax")


def tolerance(case: str) -> float:
    return 1e-4 if case == "no_final_ln" else 2e-5


@pytest.mark.parametrize("framework", ROUTES, scope="module")
@pytest.mark.parametrize("case", CASES, scope="module")
def test_logits_equal_the_reference(case, framework):
    model, golden = served(case, framework=framework), expected(case)
    atol = tolerance(case)
    ids = golden["input_ids"].astype(np.int32)
    B, S = ids.shape
    full = model("serving_default", input_ids=ids, attention_mask=np.ones_like(ids))
    np.testing.assert_allclose(full["logits"], golden["logits"], atol=atol)
    for side in ("left", "right"):
        mask = golden[f"{side}_mask"].astype(np.int32)
        padded = golden[f"ids_{side}"].astype(np.int32)
        actual = model("serving_default", input_ids=padded, attention_mask=mask)
        keep = mask.astype(bool)
        np.testing.assert_allclose(
            actual["logits"][keep], golden[f"logits_{side}"][keep], atol=atol
        )
    hidden = model("embed", input_ids=ids, input_length=int32(*[S] * B))
    np.testing.assert_allclose(
        hidden["last_hidden_state"], golden["last_hidden_state"], atol=atol
    )
    lengths = int32(S, 3, 1)
    means = [golden["last_hidden_state"][b, :n].mean(0) for b, n in enumerate(lengths)]
    pooled = model("embed", input_ids=ids, input_length=lengths)["pooled"]
    np.testing.assert_allclose(pooled, means, atol=atol)


@pytest.mark.parametrize("framework", ROUTES, scope="module")
@pytest.mark.parametrize("case", CASES, scope="module")
def test_scores_equal_the_golden_ones_at_once_and_after_a_cache(case, framework):
    model, golden = served(case, framework=framework), expected(case)
    ids = golden["input_ids"].astype(np.int32)
    B, S = ids.shape
    atol = 2 * tolerance(case)
    before = golden["logits"][:, :-1].astype(np.float64)
    logprobs = before - np.log(np.exp(before).sum(-1, keepdims=True))
    reference = np.take_along_axis(logprobs, ids[:, 1:, None], -1)[..., 0]
    likeliest = -np.sort(-logprobs)[..., :5]
    none = np.zeros((B, 0, *model.row_shape), np.float32)

    def check(scores, begin: int, end: int) -> None:
        """Of the tokens from ``begin`` on; nothing is said of the first of a call."""
        new = slice(begin, end - 1)
        for name, right in (("logprobs", reference), ("top_logprobs", likeliest)):
            np.testing.assert_allclose(scores[name][:, 1:], right[:, new], atol=atol)
            assert not scores[name][:, 0].any()
        assert (scores["top_ids"][:, 0] == -1).all()
        chosen = np.take_along_axis(logprobs[:, new], scores["top_ids"][:, 1:], -1)
        np.testing.assert_allclose(chosen, likeliest[:, new], atol=atol)

    whole = model(
        "score",
        input_ids=ids,
        input_length=int32(*[S] * B),
        cache=none,
        cache_length=int32(0, 0, 0),
    )
    check(whole, 0, S)
    cached = S // 2
    rest = model(
        "score",
        input_ids=ids[:, cached:],
        input_length=int32(*[S - cached] * B),
        cache=np.where(
            (np.arange(S) < cached)[:, None, None, None, None],
            whole["new_cache"],
            np.nan,
        ).astype(np.float32),
        cache_length=int32(*[cached] * B),
    )
    check(rest, cached, S)
    np.testing.assert_allclose(
        rest["new_cache"], whole["new_cache"][:, cached:], atol=1e-4
    )


def test_likeliest_tokens_that_nobody_fetches_are_not_computed():
    """As a server runs the graph: the operations of one call."""
    import tensorflow as tf
    from optserve.runtime.server.servable import Servable
    from optserve.runtime.server.settings import SessionOptions

    model = served("pre_ln")
    servable = Servable(
        str(model.path), SessionOptions(), manifest=read_manifest(model.path)
    )
    spec = servable.signatures["score"]
    given = {
        "input_ids": np.int32([[5, 6, 7]]),
        "input_length": int32(3),
        "cache": np.zeros((1, 0, *model.row_shape), np.float32),
        "cache_length": int32(0),
    }
    feed = {spec.inputs[name][0]: value for name, value in given.items()}

    def operations(*fetched: str) -> str:
        told = tf.compat.v1.RunMetadata()
        level = tf.compat.v1.RunOptions(trace_level=3)
        fetches = [spec.outputs[name] for name in fetched]
        servable._session.run(fetches, feed, options=level, run_metadata=told)
        devices = told.step_stats.dev_stats
        return " ".join(n.timeline_label for d in devices for n in d.node_stats)

    assert "TopKV2" in operations("logprobs", "top_ids")
    alone = operations("logprobs", "new_cache")
    assert "TopKV2" not in alone
    assert "= Assert(" in alone  # what checks a request is there all the same
    assert "= StatefulPartitionedCall(" not in alone  # all is put in line
    servable.run(spec, given, ["logprobs"])
    ((_, fetched),) = servable._callables
    assert set(fetched) == {"logprobs", "new_cache"}
    servable.close()


@pytest.mark.parametrize("framework", ROUTES, scope="module")
@pytest.mark.parametrize("case", CASES, scope="module")
def test_cached_calls_equal_whole_rows(case, framework):
    """Rows of unlike lengths, caches larger than used and full of NaN there."""
    model, golden = served(case, framework=framework), expected(case)
    ids, logits = golden["input_ids"].astype(np.int32), golden["logits"]
    first, second = int32(3, 7, 5), int32(4, 1, 6)
    start = model("prefill", input_ids=ids[:, :7], input_length=first)
    rows = np.arange(3)
    np.testing.assert_allclose(
        start["logits"], logits[rows, first - 1], atol=tolerance(case)
    )
    cache = np.full((3, 9, *start["new_cache"].shape[2:]), np.nan, np.float32)
    more = np.zeros((3, 6), np.int32)
    for b in rows:
        cache[b, : first[b]] = start["new_cache"][b, : first[b]]
        more[b, : second[b]] = ids[b, first[b] : first[b] + second[b]]
    after = model(
        "decode",
        input_ids=more,
        input_length=second,
        cache=cache,
        cache_length=first,
    )
    np.testing.assert_allclose(
        after["logits"], logits[rows, first + second - 1], atol=tolerance(case)
    )
    L, _, H, D = start["new_cache"].shape[2:]
    for i in range(L):
        for part, kind in enumerate(("key", "value")):
            new = after["new_cache"][0, :4, i, part]  # [S,H,D]
            reference = golden[f"{kind}_{i}"][0, :, 3:7].transpose(1, 0, 2)
            np.testing.assert_allclose(new, reference, atol=tolerance(case))
    assert golden["key_0"].shape[1::2] == (H, D)


@pytest.mark.parametrize("framework", ROUTES, scope="module")
def test_an_empty_cache_is_a_prefill(framework):
    model, ids = served("pre_ln", framework=framework), expected("pre_ln")["input_ids"]
    ids = ids.astype(np.int32)
    length = int32(5, 11, 1)
    start = model("prefill", input_ids=ids, input_length=length)
    empty = np.zeros((3, 0, *start["new_cache"].shape[2:]), np.float32)
    same = model(
        "decode",
        input_ids=ids,
        input_length=length,
        cache=empty,
        cache_length=int32(0, 0, 0),
    )
    np.testing.assert_allclose(same["logits"], start["logits"], atol=1e-6)


@pytest.mark.parametrize("framework", ROUTES, scope="module")
@pytest.mark.parametrize("case", CASES[-2:], scope="module")
def test_greedy_tokens_equal_the_reference(case, framework):
    """Transformers' prompts are padded on the left; on the wire they are packed."""
    model, golden = served(case, framework=framework), expected(case)
    mask = golden["left_mask"].astype(bool)
    length = mask.sum(1).astype(np.int32)
    ids = np.zeros(mask.shape, np.int32)
    for b, n in enumerate(length):
        ids[b, :n] = golden["ids_left"][b, mask[b]]
    reply = model("prefill", input_ids=ids, input_length=length)
    steps = golden["greedy"].shape[1]
    slots = mask.shape[1] + steps
    cache = np.full((3, slots, *reply["new_cache"].shape[2:]), np.nan, np.float32)
    for b, n in enumerate(length):
        cache[b, :n] = reply["new_cache"][b, :n]
    tokens = []
    for _ in range(steps):
        tokens.append(reply["logits"].argmax(-1).astype(np.int32))
        reply = model(
            "decode",
            input_ids=tokens[-1][:, None],
            input_length=int32(1, 1, 1),
            cache=cache,
            cache_length=length,
        )
        cache[np.arange(3), length] = reply["new_cache"][:, 0]
        length = length + np.int32(1)
    np.testing.assert_array_equal(np.stack(tokens, 1), golden["greedy"])


@pytest.mark.parametrize(
    ("weights", "loops"), [("float32", 0), ("bfloat16", 0), ("int8", 1)]
)
def test_one_body_computes_all_layers(weights, loops):
    """A server's time to get ready goes with the size of all functions.

    Only one loop is written out, for int8 kernels that keep each matrix.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    data = (exported("pre_ln", weights=weights) / "saved_model.pb").read_bytes()
    functions = SavedModel.FromString(data).meta_graphs[0].graph_def.library.function

    def count(op: str) -> list[int]:
        return [sum(n.op == op for n in function.node_def) for function in functions]

    # Four of each layer and the head's; elsewhere each is in a branch of its own.
    written_out = [products for products in count("_QuantizedMatMul") if products > 1]
    assert written_out == [3 * 4 + 1] * (loops if int8_matmul.available() else 0)
    # One of a single token, by two products, another of a prompt's block.
    # One alone multiplies a row by a matrix of float32.
    tokens = [products for products in count("BatchMatMulV3") if products != 1]
    blocks = count("Softmax")
    assert set(tokens) <= {0, 2} and set(blocks) <= {0, 1}
    assert sum(tokens) // 2 + sum(blocks) <= 8


@pytest.mark.parametrize("framework", ROUTES, scope="module")
def test_signatures_are_the_contract(framework):
    import tensorflow as tf

    path = served("pre_ln", framework=framework).path
    manifest = read_manifest(path)
    functions = tf.saved_model.load(str(path)).signatures
    assert sorted(functions) == sorted(manifest.signatures)
    for name, function in functions.items():
        spec = signature(name, manifest.cache_layout)
        inputs = function.structured_input_signature[1]
        assert {t.name: t.dtype for t in spec.inputs} == {
            key: tensor.dtype.name for key, tensor in inputs.items()
        }
        assert {t.name for t in spec.outputs} == set(function.structured_outputs)


def test_the_manifest_is_in_the_graph_and_names_every_file():
    model = served("pre_ln", framework="tf")
    manifest = read_manifest(model.path)
    assert changed_files(model.path, manifest) == []
    told = model("describe", row=int32(0, 0))["manifest"]
    assert told.shape == (2,)
    inside = json.loads(told[0])
    outside = json.loads(manifest.to_json())
    assert not inside.pop("files") and outside.pop("files")
    assert inside == outside
    assert Manifest.from_json(told[1]).cache_layout.row_shape == (3, 2, 4, 8)


def test_ops_keep_no_lines_of_their_own_while_a_graph_is_exported():
    def makers() -> list[str]:
        with tf.Graph().as_default():
            return [frame.name for frame in tf.zeros([]).op.traceback]

    with pytest.raises(KeyError), exporter._one_traceback():
        assert "makers" not in makers()
        raise KeyError
    assert "makers" in makers()


def test_a_long_text_is_given_to_few_rows():
    """So that no reply passes 2 GiB, which ends TensorFlow Serving's process."""
    texts = {"tokenizer": "x" * 4_000_000, "describe": "{}"}
    config, layout = OPTConfig(max_position_embeddings=64), CacheLayout(1, 1, 8)
    backend: Any = SimpleNamespace(resources={})
    module = Signatures(config, backend, {}, layout, texts, [], most_tokens=48 * 64)
    assert module._rows_of_text("tokenizer") == 48
    assert module._rows_of_text("describe") == 1024


def test_weights_are_stored_once(tmp_path):
    model = served("pre_ln", framework="tf")
    stored = (model.path / "variables" / "variables.data-00000-of-00001").stat().st_size
    checkpoint = (GOLDEN / "pre_ln" / "model.safetensors").stat().st_size
    assert stored < 1.1 * checkpoint + 10_000


@pytest.mark.parametrize("framework", ROUTES, scope="module")
@pytest.mark.parametrize(
    ("ids", "length", "expected"),
    [
        ([[5, 128]], [2], "input_ids should be from 0 to 127"),
        ([[-1, 5]], [2], "input_ids should be from 0 to 127"),
        ([[5, 5]], [3], "input_length should be from 0"),
        ([[5] * 65], [65], "input_ids should have at most 64 tokens a row"),
        ([[]] * 2049, [0] * 2049, "and 2048 in all"),
    ],
)
def test_what_is_out_of_range_is_refused(framework, ids, length, expected):

    model = served("pre_ln", framework=framework)
    with pytest.raises(ServingError, match=expected):
        model("prefill", input_ids=int32(*ids), input_length=int32(*length))


@pytest.mark.parametrize("framework", ROUTES, scope="module")
def test_large_requests_are_refused_before_anything_is_computed(framework):

    model = served("pre_ln", framework=framework)
    for shape in ((0, 500_000_000), (1, 65), (33, 64)):
        ids, lengths = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
        with pytest.raises(ServingError, match="should have at most"):
            model("prefill", input_ids=ids, input_length=lengths)
    with pytest.raises(ServingError, match="at most 1024 rows"):
        model("describe", row=np.zeros(1025, np.int32))
    assert read_manifest(model.path).max_tokens_per_call == 32 * 64
    slots = np.zeros((1, 65, *model.row_shape), np.float32)
    with pytest.raises(ServingError, match="at most 64 slots a row"):
        model(
            "decode",
            input_ids=int32([5]),
            input_length=int32(1),
            cache=slots,
            cache_length=int32(1),
        )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"framework": "torch"}, "--framework should be one of tf, jax, got 'torch'"),
        ({"framework": "jax", "compiler": "none"}, "a JAX graph runs only with XLA"),
        ({"weights": "int4"}, "int4 of a SavedModel is for --framework jax"),
        ({"cache": "int4"}, "--cache should be one of float32"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, expected):
    with pytest.raises(ExportError, match=expected):
        export_to(tmp_path / "out", GOLDEN / "pre_ln", ExportOptions(**options))
    assert not (tmp_path / "out").exists()
