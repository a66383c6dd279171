"""Our engine's process, against a server of numpy."""

from __future__ import annotations

from itertools import pairwise

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving

from .engines import our_worker
from .process import Engine, Worker


def test_it_generates_and_serves_callers(tmp_path):
    with serving(NumpyTransport(generate=(2,))) as target:
        engine = Engine("ours", our_worker("grpc", target, 1))
        worker = Worker(engine, tmp_path / "log")
        try:
            one = worker.ask(prompt=5, batch=2, tokens=3)
            all_at_once = worker.ask(prompts=[3, 5, 2], tokens=4)
        finally:
            worker.close()
    assert worker.figure.version == "tf, none, float32"
    assert one["seconds"] > 0 and one["bytes_sent"] > 0
    assert [len(times) for times in all_at_once["times"]] == [4, 4, 4]
    for times in all_at_once["times"]:
        assert times[0] > 0 and times[-1] <= all_at_once["seconds"]
        assert all(a <= b for a, b in pairwise(times))
