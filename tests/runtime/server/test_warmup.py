"""Warm-up files are replayed before a version serves; XLA can be refused."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from optserve.runtime import Client
from optserve.runtime.errors import OptserveError
from optserve.runtime.server import EmbeddedServer, SessionOptions
from tensorflow_serving.apis import prediction_log_pb2

from tests.export.exports import exported

from . import toy_models
from .calls import Caller, refused, serving


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    return toy_models.save_counter(tmp_path_factory.mktemp("counter") / "1")


@pytest.fixture
def folder(tmp_path, counter):
    copied = tmp_path / "m" / "1"
    shutil.copytree(counter, copied)
    (copied / "assets.extra").mkdir()
    return copied


def record(signature: str, **inputs) -> bytes:
    log = prediction_log_pb2.PredictionLog()
    with Caller("127.0.0.1:1", "whatever") as caller:
        request = caller.request(signature, **inputs)
    log.predict_log.request.CopyFrom(request)
    return log.SerializeToString()


def write(folder, records) -> None:
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for data in records:
            writer.write(data)


def test_every_record_runs_before_the_port_opens(folder):
    write(folder, [record("add", n=np.int32([amount])) for amount in (1, 20, 300)])
    with (
        EmbeddedServer(folder.parent) as server,
        Caller(server.target, "opt") as caller,
    ):
        assert caller.predict("add", n=np.int32([4000]))["total"].tolist() == [4321]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([b"\xff\xff"], "Failed to parse warmup record 1"),
        ([record("nosig")], 'warm-up record 1 .* key "nosig" not found'),
        ([b""] * 1001, r"exceeds the maximum \(1000\)"),
    ],
)
def test_bad_warm_up_files_keep_a_version_from_serving(folder, records, words):
    write(folder, records)
    with pytest.raises(OptserveError, match=words):
        EmbeddedServer(folder.parent)


def test_a_file_that_is_no_tfrecord(folder):
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.write_bytes(b"these are no records at all")
    with pytest.raises(OptserveError, match="not in TFRecord format"):
        EmbeddedServer(folder.parent)


def test_xla_signatures_are_refused_when_it_is_off(tmp_path):
    @tf.function(input_signature=toy_models.ROWS, jit_compile=True)
    def compiled(x):
        return {"y": 2 * x}

    @tf.function(input_signature=toy_models.ROWS)
    def plain(x):
        return {"y": 2 * x}

    toy_models.save(tmp_path / "1", compiled=compiled, plain=plain)
    off = SessionOptions(xla_cpu_compilation_enabled=False)
    with serving(tmp_path, session=off) as caller:
        assert caller.predict("plain", x=[[1.0]])["y"].tolist() == [[2.0]]
        with refused("INTERNAL", "XLA compilation disabled"):
            caller.predict("compiled", x=[[1.0]])
    with serving(tmp_path) as caller:
        assert caller.predict("compiled", x=[[1.0]])["y"].tolist() == [[2.0]]


class Steps(logging.Handler):
    """Keeps the steps that a server logs while it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if step := vars(record).get("step"):
            self.steps.append(step)


@pytest.fixture(scope="module")
def log() -> Iterator[Steps]:
    """With every step, however short."""
    logger, handler = logging.getLogger("optserve.server"), Steps()
    level = logger.level
    logger.setLevel("INFO")
    logger.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optserve.runtime.server.progress._WORTH_A_LINE", 0)
        yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def export(log) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(exported("pre_ln").parent) as server:
        yield server


def test_no_call_that_a_client_makes_waits_for_a_program(export):
    """Whatever signature and outputs are asked for, loading has prepared them."""
    with export.manager.lease("opt", None) as (_, servable):
        programs = dict(servable._callables)
        with Client(export.target) as client:
            client.generate([[2, 5], list(range(4, 40))], max_new_tokens=9)
            client.generate([[2, 5]], max_new_tokens=3, top_logprobs=2)
            client.generate([[2, 5]], max_new_tokens=3, top_logprobs=6)
            client.score([[2, 5, 6]])
            client.score([[2, 5, 6]], top_logprobs=2)
            client.embed([[2, 5, 6]])
        assert servable._callables == programs and len(programs) >= 7


def test_some_outputs_of_an_export_are_those_of_all(export):
    given = {"input_ids": np.int32([[2, 5, 6]]), "input_length": np.int32([3])}
    with Caller(export.target, "opt") as caller:
        request = caller.request("prefill", **given)
        both = caller.prediction.Predict(request, timeout=30).outputs
        for name in both:
            request.output_filter[:] = [name]
            one = caller.prediction.Predict(request, timeout=30).outputs
            assert list(one) == [name] and one[name] == both[name]


@pytest.mark.usefixtures("export")
def test_the_log_says_what_is_prepared(log):
    steps = log.steps
    assert steps[:2] == ["files checked", "graph and weights loaded"]
    numbered = [re.fullmatch(r"warm-up (\d+)/(\d+): .*", s) for s in steps[2:]]
    count = len(numbered)
    assert [(m[1], m[2]) for m in numbered] == [
        (str(i + 1), str(count)) for i in range(count)
    ]
    assert any("generate_8 of 1 × 1 tokens, " in step for step in steps)
