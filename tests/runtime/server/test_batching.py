"""Concurrent requests run together, and each gets its own rows."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from optserve.runtime.server import BatchingParameters, SessionOptions
from optserve.runtime.server.batching import Batcher
from optserve.runtime.server.servable import Servable
from optserve.runtime.server.serving_error import ServingError

from . import toy_models
from .calls import refused, serving


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("batchable")
    toy_models.save_batchable(path / "1")
    return path


@pytest.fixture(scope="module")
def servable(base):
    return Servable(str(base / "1"), SessionOptions())


class Gate:
    """A servable whose runs wait for a signal, so that requests pile up behind."""

    def __init__(self, servable):
        self.servable = servable
        self.open = threading.Event()
        self.started = threading.Semaphore(0)
        self.shapes = []
        self.limits = servable.limits

    def run(self, signature, inputs, outputs):
        self.shapes.append({name: a.shape for name, a in inputs.items()})
        self.started.release()
        assert self.open.wait(10)
        return self.servable.run(signature, inputs, outputs)


def run_behind_a_gate(servable, parameters, name, requests, outputs):
    """Results of requests that all wait while a first one runs; and the gate."""
    gate, batcher = Gate(servable), Batcher(parameters)
    signature = servable.signatures[name]
    with ThreadPoolExecutor(len(requests) + 1) as pool:
        first = pool.submit(batcher, gate, signature, requests[0], outputs)
        assert gate.started.acquire(timeout=10)
        rest = []
        for request in requests[1:]:
            rest.append(pool.submit(batcher, gate, signature, request, outputs))
            wait_until_queued(batcher, rest)
        gate.open.set()
        results = []
        for future in [first, *rest]:
            error = future.exception(10)
            results.append(error or future.result())
    return results, gate


def wait_until_queued(batcher, futures):
    def waiting():
        return sum(len(b.tasks) for q in batcher._queues.values() for b in q)

    for _ in range(1000):
        if waiting() + sum(f.done() for f in futures) == len(futures):
            return
        threading.Event().wait(0.005)
    raise AssertionError("a request was not queued")


def x(*rows):
    return {"x": np.array([[value] * 8 for value in rows], np.float32)}


ONE = {"num_batch_threads": 1}


def test_waiting_requests_run_as_one(servable):
    requests = [x(1), x(2), x(3, 4), x(5)]
    results, gate = run_behind_a_gate(
        servable, BatchingParameters(**ONE), "rows", requests, ["width", "y"]
    )
    assert [shape["x"] for shape in gate.shapes] == [(1, 8), (4, 8)]
    assert [r[0].tolist() for r in results] == [[1], [4], [4, 4], [4]]
    for request, (_, y) in zip(requests, results, strict=True):
        assert (y == 3 * request["x"]).all()


def test_rows_are_padded_to_allowed_sizes(servable):
    parameters = BatchingParameters(
        max_batch_size=8, allowed_batch_sizes=(2, 4, 8), **ONE
    )
    requests = [x(1), x(2, 3), x(4)]
    results, gate = run_behind_a_gate(servable, parameters, "rows", requests, ["y"])
    assert [shape["x"] for shape in gate.shapes] == [(2, 8), (4, 8)]
    for request, (y,) in zip(requests, results, strict=True):
        assert (y == 3 * request["x"]).all()


def test_a_full_batch_starts_another(servable):
    parameters = BatchingParameters(max_batch_size=2, **ONE)
    requests = [x(1), x(2), x(3, 4), x(5)]
    _, gate = run_behind_a_gate(servable, parameters, "rows", requests, ["y"])
    assert [shape["x"][0] for shape in gate.shapes] == [1, 1, 2, 1]


def test_full_queue(servable):
    parameters = BatchingParameters(max_batch_size=1, max_enqueued_batches=2, **ONE)
    requests = [x(1), x(2), x(3), x(4)]
    results, _ = run_behind_a_gate(servable, parameters, "rows", requests, ["y"])
    *served, refusal = results
    assert [y[0, 0] for (y,) in served] == [3, 6, 9]
    assert isinstance(refusal, ServingError) and refusal.code.name == "UNAVAILABLE"
    assert "max_enqueued_batches is 2" in refusal.details


def test_inner_axes_are_padded_with_the_first_element(servable):
    def ragged(*values):
        return {"x": np.array([values], np.float32)}

    parameters = BatchingParameters(pad_variable_length_inputs=True, **ONE)
    requests = [ragged(1), ragged(5, 6), ragged(7, 8, 9)]
    outputs = ["last", "first"]
    results, _ = run_behind_a_gate(servable, parameters, "ragged", requests, outputs)
    assert [last.tolist() for last, _ in results] == [[1], [5], [9]]
    parameters = BatchingParameters(**ONE)
    results, _ = run_behind_a_gate(servable, parameters, "ragged", requests, outputs)
    assert {r.code.name for r in results[1:]} == {"FAILED_PRECONDITION"}
    parameters = BatchingParameters(pad_variable_length_inputs=True, **ONE)
    requests[1] = {"x": np.zeros((1, 0), np.float32)}
    results, _ = run_behind_a_gate(servable, parameters, "ragged", requests, outputs)
    assert "empty tensor in batch of non-empty" in results[2].details


def test_a_batch_is_closed_before_padding_takes_gigabytes(servable, monkeypatch):
    monkeypatch.setattr("optserve.runtime.server.batching.MESSAGE_LIMIT", 4 * 1000)

    def ragged(rows, columns):
        return {"x": np.ones((rows, columns), np.float32)}

    parameters = BatchingParameters(pad_variable_length_inputs=True, **ONE)
    requests = [ragged(1, 1), ragged(9, 10), ragged(1, 900), ragged(1, 20)]
    outputs = ["last", "first"]
    results, gate = run_behind_a_gate(servable, parameters, "ragged", requests, outputs)
    # together they would be 11 rows of 900 columns
    assert [shape["x"] for shape in gate.shapes] == [(1, 1), (9, 10), (1, 900), (1, 20)]
    assert [last.tolist() for last, _ in results] == [[1], [1] * 9, [1], [1]]


def test_many_axes_and_strings():
    from optserve.runtime.server.batch_tensors import concatenate

    signature = SimpleNamespace(inputs={"x": ("x:0", None), "s": ("s:0", None)})
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 1, 4), (1, 2, 5, 4), (3, 1, 2, 7)]
    given = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    words = [
        np.array([[b"a", b"b"][: n + 1]] * len(g), object)
        for n, g in zip((0, 1, 0), given, strict=True)
    ]
    requests = [{"x": g, "s": w} for g, w in zip(given, words, strict=True)]
    merged = concatenate(signature, requests, padded_rows=8, pad_inner=True)
    start = 0
    for g in given:
        pads = [(0, 0)] + [
            (0, m - n) for n, m in zip(g.shape[1:], (3, 5, 7), strict=True)
        ]
        expected = np.pad(g, pads, constant_values=g.flat[0])
        assert (merged["x"][start : start + len(g)] == expected).all()
        start += len(g)
    assert (merged["x"][6:] == merged["x"][3]).all()
    assert merged["s"].tolist()[:3] == [[b"a", b"a"]] * 2 + [[b"a", b"b"]]


def test_errors_as_tensorflow_serving_words_them(base):
    parameters = BatchingParameters(max_batch_size=4)
    with serving(base, batching=parameters) as caller:
        five = np.ones((5, 8), np.float32)
        with refused("INVALID_ARGUMENT", "Task size 5 is larger than maximum"):
            caller.predict("rows", x=five)
        with refused("FAILED_PRECONDITION", "output tensor has 0 dimensions"):
            caller.predict("scalar", x=[[1.0]])
        with refused("INVALID_ARGUMENT", "must have at least one input tensor"):
            caller.predict("nothing")
        with refused("INVALID_ARGUMENT", "has 1 axes, the signature has 2"):
            caller.predict("rows", x=[1.0])
        assert caller.predict("rows", x=five[:4])["y"].shape == (4, 8)
        assert caller.predict("rows", x=five[:0])["y"].shape == (0, 8)


def test_many_clients_at_once(base):
    parameters = BatchingParameters(batch_timeout_micros=2000, max_batch_size=4)
    with serving(base, batching=parameters) as caller:

        def ask(value):
            reply = caller.predict("rows", x=np.full((1, 8), value, np.float32))
            return reply["y"][0, 0], reply["width"][0]

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(200)))
    assert [y for y, _ in answers] == [3.0 * value for value in range(200)]
    assert 1 < max(width for _, width in answers) <= 4


def test_a_batch_that_waits_out_a_busy_slot_still_runs(servable):
    gate = Gate(servable)
    signature = servable.signatures["rows"]
    batcher = Batcher(BatchingParameters(batch_timeout_micros=200_000, **ONE))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher, gate, signature, x(1), ["y"])
        assert gate.started.acquire(timeout=10)
        second = pool.submit(batcher, gate, signature, x(2), ["y"])
        wait_until_queued(batcher, [second])
        gate.open.set()  # the slot is free before the second one's time has come
        assert first.result(10)[0][0, 0] == 3 and second.result(10)[0][0, 0] == 6


def test_a_single_request_waits_for_the_timeout_only(servable):
    gate = Gate(servable)
    gate.open.set()
    signature = servable.signatures["rows"]
    batcher = Batcher(BatchingParameters(batch_timeout_micros=50_000))
    (y,) = batcher(gate, signature, x(2), ["y"])
    assert y[0, 0] == 6


def test_eight_clients_get_more_than_one(tmp_path):
    sizes = (1, 2, 4, 8)
    toy_models.save_heavy(tmp_path / "1")
    parameters = BatchingParameters(8, allowed_batch_sizes=sizes, **ONE)
    row = np.ones((1, 1024), np.float32)

    def rate(caller, clients):
        def ask(_):
            for _ in range(40 // clients):
                caller.predict("heavy", x=row)

        with ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            list(pool.map(ask, range(clients)))
        return 40 / (time.perf_counter() - start)

    with serving(tmp_path, batching=parameters) as caller:
        ratios = []
        while len(ratios) < 3 and not any(ratio > 1.3 for ratio in ratios):
            ratios.append(rate(caller, 8) / rate(caller, 1))
    assert ratios[-1] > 1.3, ratios
