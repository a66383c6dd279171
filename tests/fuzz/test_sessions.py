"""Calls of sessions that no client of ours makes, beside one that keeps to the rules.

Whatever they do, an honest caller's slot is its own until somebody opens it, and what
it gets there is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from optserve.runtime import Client
from optserve.runtime.model_dir import read_manifest

from .mutations import changed_bytes, hostile_array, pick

predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
from optserve.runtime.server import EmbeddedServer  # noqa: E402
from optserve.runtime.server.settings import BatchingParameters  # noqa: E402

from tests.export.exports import exported  # noqa: E402
from tests.runtime.session_schedule import off  # noqa: E402

from .test_requests import METHOD, REFUSALS, is_message, request  # noqa: E402

pytestmark = pytest.mark.fuzz
SLOTS, NEW = 4, 8
PROMPT = [2, 5, 6, 7]
HUGE = (2**31 - 1, -(2**31), -1, 41, 10**6)
Tensors = dict[str, np.ndarray]
Predict = Callable[[str, Tensors], Tensors]


class Server(NamedTuple):
    """Where it listens, and whether it runs unrelated calls together."""

    target: str
    batched: bool


@pytest.fixture(scope="module", params=["one by one", "batched"])
def server(request) -> Iterator[Server]:
    export = exported("pre_ln", sessions=SLOTS, session_slots=40)
    batching = BatchingParameters(
        max_batch_size=8,
        batch_timeout_micros=1000,
        allowed_batch_sizes=(1, 2, 4, 8),
        pad_variable_length_inputs=True,
    )
    given = batching if request.param == "batched" else None
    with EmbeddedServer(export.parent, batching=given) as server:
        yield Server(server.target, given is not None)


@pytest.fixture(scope="module")
def right() -> dict[str, Tensors]:
    """Inputs of each signature, but for the slot and the ticket."""
    manifest = read_manifest(exported("pre_ln", sessions=SLOTS, session_slots=40))
    one = np.array([0], np.int32)
    ids = {"input_ids": np.array([PROMPT], np.int32), "input_length": one + 4}
    rows = np.zeros([1, 3, *manifest.cache_layout.row_shape], np.float32)
    chosen = off(manifest, NEW, 1) | {"max_new_tokens": one + NEW}
    return {
        "session_open": {"row": one},
        "session_decode": {**ids, "cache_length": one},
        f"session_generate_{NEW}": {**ids, **chosen, "cache_length": one},
        "session_write": {"cache": rows, "start": one, "cache_length": one + 3},
        "session_read": {"start": one, "size": one},
        "session_copy": {"to_slot": one, "to_ticket": one + 0, "cache_length": one},
    }


def hostile(rng: np.random.Generator, inputs: Tensors, held: Tensors) -> Tensors:
    """Slots and tickets of some kind, and perhaps a tensor that does not belong."""
    inputs = dict(inputs)
    if "row" not in inputs:
        inputs |= {
            "slot": np.array([rng.integers(SLOTS)], np.int32),  # somebody's
            "ticket": rng.integers(-2, 2**62, 1),  # and no ticket of it
        }
        if rng.random() < 0.5:
            inputs |= held
    if "to_slot" in inputs:
        inputs |= {"to_slot": np.array([rng.integers(-1, SLOTS + 1)], np.int32)}
        inputs |= {"to_ticket": rng.integers(-2, 2**62, 1)}
    if rng.random() < 0.2:
        name = pick(rng, [n for n, x in inputs.items() if x.dtype == np.int32])
        inputs[name] = np.full_like(inputs[name], pick(rng, HUGE))
    if rng.random() < 0.2 or "row" in inputs:  # more than there are slots, perhaps
        count = int(rng.integers(2, 7))
        inputs = {name: np.repeat(x, count, axis=0) for name, x in inputs.items()}
    if rng.random() < 0.4:
        name = pick(rng, sorted(inputs))
        inputs[name] = hostile_array(rng, inputs[name])
    return inputs


def predicted(call: Callable[..., bytes]) -> Predict:
    """Right calls, through the official messages."""
    import tensorflow as tf

    def predict(name: str, inputs: Tensors) -> Tensors:
        data = call(message(name, inputs), timeout=60)
        reply = predict_pb2.PredictResponse.FromString(data)
        return {key: tf.make_ndarray(t) for key, t in reply.outputs.items()}

    return predict


def message(name: str, inputs: Tensors) -> bytes:
    """A request's bytes."""
    import tensorflow as tf

    message = predict_pb2.PredictRequest()
    message.model_spec.name = "opt"
    message.model_spec.signature_name = name
    for key, array in inputs.items():
        message.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    return message.SerializeToString()


def honest(predict: Predict, right: dict[str, Tensors], expected: list[int]) -> str:
    """Two calls in a slot of its own: the second goes on from the first."""
    held = predict("session_open", {"row": np.array([0], np.int32)})
    inputs, made, cached = right[f"session_generate_{NEW}"], [], 0
    for _ in range(2):
        fed = {"cache_length": np.array([cached], np.int32)}
        if made:
            fed |= {"input_ids": np.array([made[-1:]], np.int32)}
            fed |= {"input_length": np.array([1], np.int32)}
        reply = predict(f"session_generate_{NEW}", inputs | held | fed)
        alive, tokens = reply["alive"].tolist(), reply["tokens"][0].tolist()
        if alive == [0]:
            assert tokens == [-1] * NEW and reply["count"].tolist() == [0]
            return "robbed"
        assert alive == [1] and tokens == expected[len(made) : len(made) + NEW]
        cached += (1 if made else len(PROMPT)) + NEW - 1
        made += tokens
    return "right"


def attack(call: Callable[..., bytes], name: str, inputs: Tensors, rng) -> str:
    """What the server says; never that it failed."""
    data = message(name, inputs)
    if rng.random() < 0.1:  # shapes that promise what is not there
        data = request(name, inputs, rng).SerializeToString()
    if rng.random() < 0.1:
        data = changed_bytes(rng, data)
    try:
        reply = predict_pb2.PredictResponse.FromString(call(data, timeout=60))
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.INTERNAL:  # as gRPC says it of no message
            assert not is_message(data), (data, error.details())
            return "not a message"
        assert code in REFUSALS, (code, error.details())
        return code.name
    except DecodeError:
        raise AssertionError("the reply is not a message") from None
    alive = reply.outputs["alive"].int_val if "alive" in reply.outputs else ()
    assert set(alive) <= {0, 1}
    return "held" if any(alive) else "not held"


def test_sessions(fuzz, server, right):
    with (
        grpc.insecure_channel(server.target) as channel,
        Client(server.target, sessions=False) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        call = channel.unary_unary(METHOD)
        predict = predicted(call)
        (result,) = client.generate([PROMPT], max_new_tokens=2 * NEW, stop_token_ids=[])
        expected = result.tokens
        neighbours: Counter[str] = Counter()

        def target(rng: np.random.Generator) -> str:
            held = predict("session_open", {"row": np.array([0], np.int32)})
            name = pick(rng, sorted(right))
            inputs = hostile(rng, right[name], held)
            neighbour = beside.submit(honest, predict, right, expected)
            said = attack(call, name, inputs, rng)
            try:
                neighbours[neighbour.result()] += 1
            except grpc.RpcError as error:  # a batch is refused as a whole
                assert server.batched and error.code() in REFUSALS, error
                neighbours["refused"] += 1
            return said

        counts = fuzz(target)
        print(f"its neighbour: {dict(neighbours)}")
        assert counts["held"] and counts["not held"] and neighbours["right"]
        assert honest(predict, right, expected) == "right"
