"""The warm-up file, read with the server's own message types."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from optserve.export.errors import ExportError
from optserve.export.savedmodel.buckets import Sizes, chosen_sizes
from optserve.export.savedmodel.warmup import warmup_calls, write_warmup
from optserve.runtime.contract import signature
from optserve.runtime.model_dir import WARMUP_PATH, read_manifest

from tests.export.exports import (
    COMPILED_LOOPS,
    INT8_COMPILED_LOOPS,
    exported,
    served,
)


@pytest.fixture(scope="module")
def model():
    return served("pre_ln")


def test_the_records_are_requests_that_the_export_answers(model):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    layout = read_manifest(model.path).cache_layout
    records = list(
        tf.data.TFRecordDataset(str(model.path / WARMUP_PATH)).as_numpy_iterator()
    )
    seen = set()
    for record in records:
        entry = prediction_log_pb2.PredictionLog.FromString(record)
        request = entry.predict_log.request
        name = request.model_spec.signature_name
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        assert set(inputs) == {spec.name for spec in signature(name, layout).inputs}
        replies = model(name, **inputs)
        for value in replies.values():
            assert value.dtype == object or np.isfinite(value).all()
        if name.startswith("generate"):  # a step follows what the prompt gives
            assert (replies["tokens"] >= 0).sum() == 2
        seen.add(name)
    assert seen == {
        "describe",
        "score",
        "embed",
        "serving_default",
        "prefill",
        "decode",
        "generate_8",
        "generate_24",
    }
    assert len(b"".join(records)) < 10_000


def test_every_size_is_covered_once(model):
    manifest = read_manifest(model.path)
    sizes = Sizes(rows=(1, 4), prompt=(1, 16))
    calls = [
        (name, *dims.values())
        for name, dims, outputs in warmup_calls(manifest, sizes, sizes)
        if not outputs
    ]
    for rows in (1, 4):
        for prompt in (1, 16):
            assert calls.count(("prefill", rows, prompt, 0)) == 1
        for name in ("decode", "generate_8"):
            assert calls.count((name, rows, 1, 8)) == 1


def test_what_is_needed_first_comes_first(model):
    manifest = read_manifest(model.path)
    sizes = Sizes(rows=(1, 4), prompt=(1, 16))
    calls = list(warmup_calls(manifest, sizes, sizes))
    assert calls.pop(0).name == "describe"
    main = calls[: [call.name for call in calls].index("score")]
    assert main[0][:2] == ("generate_8", {"B": 1, "S": 1, "C": 8})
    assert not any(call.outputs for call in main)
    assert [call.dims["B"] for call in main] == sorted(c.dims["B"] for c in main)
    assert {call.name for call in calls[len(main) :]} == {
        *("score", "embed", "serving_default")
    }


@pytest.mark.parametrize(
    ("rows", "allowed", "expected"),
    [((), [], set()), ((1,), [], {2}), ((1, 4), [1, 4], {4}), ((1,), [1], set())],
)
def test_several_rows_are_ready_beside_a_compiled_loop(model, rows, allowed, expected):
    """By the signature that keeps packed int8 matrices for them."""
    manifest = dataclasses.replace(
        read_manifest(model.path), weights_dtype="int8", batch_sizes=allowed
    )
    calls = list(warmup_calls(manifest, Sizes(), Sizes(rows=rows)))
    generating = {dims["B"] for name, dims, _ in calls if name == "generate_24"}
    assert generating - {1} == expected


def test_a_huge_cache_is_left_to_its_first_request(model):
    manifest = dataclasses.replace(read_manifest(model.path), generate=[1])
    most = 2**30 // manifest.cache_layout.row_bytes // 8
    sizes = Sizes(rows=(1, most, most + 1))
    rows = [
        dims["B"]
        for name, dims, outputs in warmup_calls(manifest, sizes, sizes)
        if name == "decode" and not outputs
    ]
    assert rows == [1, most]


def test_more_than_a_server_replays_is_refused(model, tmp_path):
    manifest = dataclasses.replace(read_manifest(model.path), max_positions=10_000)
    sizes = Sizes(rows=tuple(range(1, 60)), prompt=tuple(range(1, 240)))
    with pytest.raises(ExportError, match="a server replays 1000"):
        write_warmup(tmp_path, manifest, sizes, sizes)


def test_sizes_are_ascending_and_within_the_model():
    assert chosen_sizes(2048, None, None).rows == (1,)
    assert chosen_sizes(2048, None, None, framework="jax").rows == (1, 8)
    assert chosen_sizes(2048, None, None, framework="jax").prompt[-1] == 128
    assert chosen_sizes(40, None, None, framework="jax").prompt == (1, 32, 40)
    with pytest.raises(ExportError, match="--prompt-buckets should stay within"):
        chosen_sizes(40, [64], None, framework="jax")
    with pytest.raises(ExportError, match="--batch-sizes should be ascending"):
        chosen_sizes(40, None, [4, 1])


@pytest.mark.parametrize(
    "options", [COMPILED_LOOPS, INT8_COMPILED_LOOPS], ids=["float32", "int8"]
)
def test_signatures_share_what_is_compiled(options):
    """So a record for one of them compiles the loop for all."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = exported("pre_ln", **options)
    data = (path / "saved_model.pb").read_bytes()
    graph = SavedModel.FromString(data).meta_graphs[0]
    functions = {f.signature.name: f for f in graph.graph_def.library.function}

    def compiled(name, seen):
        function = functions.get(name)
        if function is None or name in seen:
            return set()
        seen.add(name)
        if any(node.op == "XlaCallModule" for node in function.node_def):
            return {name}
        attributes = [attr for n in function.node_def for attr in n.attr.values()]
        called = {attr.func.name for attr in attributes}
        called |= {func.name for attr in attributes for func in attr.list.func}
        return set().union(*(compiled(other, seen) for other in called))

    programs = []
    for n in (8, 24):
        (output, *_) = graph.signature_def[f"generate_{n}"].outputs.values()
        nodes = {node.name: node for node in graph.graph_def.node}
        call = nodes[output.name.split(":")[0]]
        programs.append(compiled(call.attr["f"].func.name, set()))
    assert programs[0] == programs[1] != set()
