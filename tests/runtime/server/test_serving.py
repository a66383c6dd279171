"""What the recordings don't show: large replies, hostile sizes, stopping, state."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from optserve.runtime.codec import predict as codec
from optserve.runtime.server import BatchingParameters, EmbeddedServer, ModelOptions

from . import toy_models
from .calls import Caller, refused, serving


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving")
    toy_models.save_scaled(path / "1", 2.0)
    return path


def test_messages_far_above_grpcs_default_limit(base):
    x = np.arange(6_000_000, dtype=np.float32).reshape(2, -1)
    with serving(base) as caller:
        assert (caller.predict(x=x)["y"] == 2 * x).all()


def test_a_reply_that_is_too_large_is_refused(base, monkeypatch):
    monkeypatch.setattr(codec, "MESSAGE_LIMIT", 1000)
    with serving(base) as caller:
        assert caller.predict(x=[[1.0]])["y"] == 2
        with refused("RESOURCE_EXHAUSTED", "at most 1000 are possible"):
            caller.predict(x=np.ones((1, 500), np.float32))


def test_a_repeated_value_cannot_stand_for_more_than_a_message(base):
    with serving(base) as caller:
        request = caller.request(x=[[1.0]])
        request.inputs["x"].tensor_shape.dim[1].size = 2**29
        with refused("INVALID_ARGUMENT"):
            caller.prediction.Predict(request, timeout=30)
        assert caller.predict(x=[[1.0]])["y"] == 2


def test_calls_under_way_are_answered_when_the_server_stops(base):
    slow = BatchingParameters(batch_timeout_micros=500_000)
    with EmbeddedServer(base, name="toy", batching=slow) as server:
        with Caller(server.target) as caller, ThreadPoolExecutor(1) as pool:
            caller.states()  # connects
            call = pool.submit(caller.predict, x=[[1.0]])
            time.sleep(0.2)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            time.sleep(0.1)
            with pytest.raises(grpc.RpcError):
                caller.predict(x=[[1.0]])
            assert call.result(10)["y"] == 2
            stopping.join(10)
        assert server.wait(1)
        server.stop()


def test_variables_keep_their_values_under_concurrent_writers(tmp_path):
    toy_models.save_counter(tmp_path / "1")
    with serving(tmp_path) as caller, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: caller.predict("add", n=np.int32([1])), range(100)))
        assert caller.predict("add", n=np.int32([0]))["total"].tolist() == [100]


def test_signatures_that_are_not_for_predict(typed_server):
    with Caller(typed_server.target, "rec") as caller:
        with refused("INTERNAL", "Expected prediction signature method_name"):
            caller.predict("__saved_model_init_op")
        with refused("FAILED_PRECONDITION", 'key "serving_default" not found'):
            caller.predict(x=[[1.0]])


def test_string_tables_are_initialised(tmp_path):
    module = tf.Module()
    keys, values = tf.constant(["a", "b"]), tf.constant([1, 2])
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, values), -1
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "words")])
    def look_up(words):
        return {"ids": module.table.lookup(words)}

    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": look_up})
    with serving(tmp_path) as caller:
        ids = caller.predict(words=[b"b", b"x", b"a"])["ids"]
        assert ids.tolist() == [2, -1, 1]


def test_either_a_path_or_models(base):
    with pytest.raises(ValueError, match="either base_path or models"):
        EmbeddedServer()
    with pytest.raises(ValueError, match="either base_path or models"):
        EmbeddedServer(base, models={"m": ModelOptions(str(base))})
