"""The table of the contract, typed by hand: each signature is called with these inputs,
and nothing more, and gives these outputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from optserve.runtime.codec.predict import ModelSpec, PredictRequest
from optserve.runtime.model_dir import SAVED_MODEL_FILE, read_manifest

from tests.export.exports import INT8_MIXED, INT8_SESSIONS, exported

B, S, C, N, W, K, J = 2, 3, 4, 8, 5, 2, 3
CHOSEN = {
    "max_new_tokens": "i4 B",
    "history": "i4 B W",
    "stop_ids": "i4 B K",
    "seed": "i4 B 2",
    "temperature": "f4 B",
    "top_k": "i4 B",
    "top_p": "f4 B",
    "repetition_penalty": "f4 B",
    "min_p": "f4 B",
    "presence_penalty": "f4 B",
    "frequency_penalty": "f4 B",
    "min_new_tokens": "i4 B",
    "bias_ids": "i4 B J",
    "bias": "f4 B J",
    "top_logprobs": "i4 B",
}
IDS = {"input_ids": "i4 B S", "input_length": "i4 B"}
CACHE = {"cache": "f4 B C row", "cache_length": "i4 B"}
SLOT = {"slot": "i4 B", "ticket": "i8 B"}
ALIVE = {"alive": "i4 B"}
NEXT = {"logits": "f4 B V", "new_cache": "f4 B S row"}
TOKENS = {
    "tokens": "i4 B N",
    "logprobs": "f4 B N",
    "count": "i4 B",
    "top_ids": "i4 B N 5",
    "top_logprobs": "f4 B N 5",
}
TABLE = {
    "serving_default": (
        {"input_ids": "i4 B S", "attention_mask": "i4 B S"},
        {"logits": "f4 B S V"},
    ),
    "prefill": (IDS, NEXT),
    "decode": (IDS | CACHE, NEXT),
    "generate_8": (IDS | CACHE | CHOSEN, TOKENS | {"new_cache": "f4 B S+N-1 row"}),
    "score": (
        IDS | CACHE,
        {"logprobs": "f4 B S", "top_ids": "i4 B S 5", "top_logprobs": "f4 B S 5"},
    ),
    "embed": (IDS, {"last_hidden_state": "f4 B S E", "pooled": "f4 B E"}),
    "describe": ({"row": "i4 B"}, {"manifest": "O B"}),
    "session_open": ({"row": "i4 B"}, SLOT),
    "session_write": (SLOT | CACHE | {"start": "i4 B"}, ALIVE),
    "session_decode": (
        IDS | SLOT | {"cache_length": "i4 B"},
        {"logits": "f4 B V"} | ALIVE,
    ),
    "session_generate_8": (
        IDS | SLOT | {"cache_length": "i4 B"} | CHOSEN,
        TOKENS | ALIVE,
    ),
    "session_read": (
        SLOT | {"start": "i4 B", "size": "i4 B"},
        {"cache": "f4 B C row"} | ALIVE,
    ),
    "session_copy": (
        SLOT | {"to_slot": "i4 B", "to_ticket": "i8 B", "cache_length": "i4 B"},
        ALIVE,
    ),
}
"""Dtypes and shapes; ``row`` is L, 2, H, D. Sessions in an order that works."""

EXTENSIONS = {"score": {"new_cache"}}
VALUES = {"input_length": 3, "max_new_tokens": 8, "cache_length": 4, "size": 4}
VALUES |= {"top_p": 1, "repetition_penalty": 1, "attention_mask": 1, "top_logprobs": 5}
VALUES |= {"history": -1, "stop_ids": -1, "bias_ids": -1}


class Caller:
    """Calls an export as a client of TensorFlow Serving does."""

    def __init__(self, **options: Any) -> None:
        from optserve.runtime.server.servable import Servable
        from optserve.runtime.server.settings import SessionOptions

        folder = exported("pre_ln", **options)
        manifest = read_manifest(folder)
        sizes = {"B": B, "S": S, "C": C, "N": N, "W": W, "K": K, "J": J}
        self.sizes = {key: (value,) for key, value in sizes.items()}
        self.sizes |= {"S+N-1": (S + N - 1,), "row": manifest.cache_layout.row_shape}
        self.sizes |= {"V": (manifest.vocab_size,), "E": (manifest.output_width,)}
        self.servable = Servable(str(folder), SessionOptions(), manifest=manifest)
        self.close = self.servable.close

    def __call__(self, name, inputs, outputs=()) -> dict[str, np.ndarray]:
        from optserve.runtime.server.predict import predict, run_directly

        request = PredictRequest(ModelSpec("", name), inputs, outputs)
        return predict(self.servable, request, run_directly)[1]

    def tensor(self, text: str) -> tuple[np.dtype, tuple[int, ...]]:
        """The dtype and shape that the table writes."""
        dtype, *dims = text.split()
        return np.dtype(dtype), sum((self.sizes.get(d) or (int(d),) for d in dims), ())


ROUTES = {
    "tf": {"sessions": 3, "session_slots": 40, "generate": (1, 8)},
    "jax": INT8_MIXED,
}


@pytest.fixture(scope="module", params=ROUTES)
def caller(request) -> Iterator[Caller]:
    with closing(Caller(**ROUTES[request.param])) as caller:
        yield caller


def held(caller: Caller) -> dict[str, np.ndarray]:
    """Two slots with four rows each."""
    slots = caller("session_open", {"row": np.zeros(B, np.int32)})
    dtype, shape = caller.tensor("f4 B C row")
    rows = {"cache": np.zeros(shape, dtype), "start": np.zeros(B, np.int32)}
    length = {"cache_length": np.full(B, C, np.int32)}
    assert caller("session_write", slots | rows | length)["alive"].tolist() == [1, 1]
    return slots


@pytest.mark.parametrize("name", TABLE)
def test_each_signature_takes_and_gives_what_the_table_says(caller, name):
    named_inputs, named_outputs = TABLE[name]
    inputs = {}
    for alias, text in named_inputs.items():
        dtype, shape = caller.tensor(text)
        inputs[alias] = np.full(shape, VALUES.get(alias, 0), dtype)
    if "slot" in named_inputs:
        slots = held(caller)
        inputs |= slots
        if "to_slot" in named_inputs:
            inputs |= {"to_slot": slots["slot"][::-1].copy()}
            inputs |= {"to_ticket": slots["ticket"][::-1].copy()}
    every = caller(name, inputs)
    assert every.keys() - EXTENSIONS.get(name, set()) == named_outputs.keys()
    fetched = caller(name, inputs, tuple(named_outputs))
    assert fetched.keys() == named_outputs.keys()
    for alias, text in named_outputs.items():
        assert (fetched[alias].dtype, fetched[alias].shape) == caller.tensor(text)
    if "alive" in fetched:
        assert fetched["alive"].tolist() == [1, 1]
    if "tokens" in fetched:
        assert (fetched["count"] == 8).all() and (fetched["top_ids"] >= 0).all()
    if name == "score":
        assert (fetched["top_ids"][:, 1:] >= 0).all()
        some = caller(name, inputs, ("logprobs",))["logprobs"]
        np.testing.assert_array_equal(some, fetched["logprobs"])


def test_the_manifest_names_the_table(caller):
    from optserve.runtime.contract import Manifest

    text = caller("describe", {"row": np.zeros(1, np.int32)})["manifest"][0]
    names = set(Manifest.from_json(text.decode()).signatures)
    others = {"generate_1", "session_generate_1", "tokenizer"}
    assert TABLE.keys() <= names <= TABLE.keys() | others


def signatures_that_keep(**options) -> set[str]:
    """Those with int8 products whose packed matrices stay in memory."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = exported("pre_ln", **options) / SAVED_MODEL_FILE
    (graph,) = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    nodes = {node.name: node for node in graph.graph_def.node}
    functions = {f.signature.name: f for f in graph.graph_def.library.function}

    def keep(node) -> bool:
        # What is not written is the operation's default, to keep them.
        if node.op == "_QuantizedMatMul" and "is_weight_const" not in node.attr:
            return True
        called = {a.func.name for a in node.attr.values() if a.func.name}
        called |= {f.name for a in node.attr.values() for f in a.list.func}
        return any(map(function_keeps, called))

    @functools.cache
    def function_keeps(name: str) -> bool:
        return any(map(keep, functions[name].node_def))

    return {
        name
        for name, spec in graph.signature_def.items()
        for info in spec.outputs.values()
        if keep(nodes[info.name.split(":")[0]])
    }


def test_matrices_are_kept_by_one_signature():
    """Each signature that keeps them takes the memory of the weights once more."""
    assert signatures_that_keep(weights="int8") == {"generate_24"}
    assert signatures_that_keep(**INT8_SESSIONS) == {"session_generate_8"}
    assert signatures_that_keep(**INT8_MIXED) == {"session_generate_8"}
