"""Replicas of one model as processes, and what a client may find in their place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from optserve.runtime import codec

PREDICT = "/tensorflow.serving.PredictionService/Predict"
RESTARTS = 100  # of one replica that ends before it is ready


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


class Replica:
    """``optserve serve`` in a process of its own, always at the same port."""

    def __init__(self, out: Path, log: Path) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self._log = log
        self._command = [sys.executable, "-m", "optserve.runtime.cli", "serve"]
        self._command += [str(out), "--port", str(self.port), "--json-ready"]
        self._command += ["--poll-seconds", "0.5"]
        self.start()

    def start(self) -> None:
        """Begin to start it; ``wait_until_ready`` tells when it serves."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log
            )

    def wait_until_ready(self) -> None:
        """Until the line that says so.

        A server that starts while the newest version is corrupt ends, and is started
        again, as whatever supervises servers does.
        """
        for _ in range(RESTARTS):
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            if line:
                json.loads(line)
                return
            self.process.wait()
            self.start()
        raise AssertionError(f"ended {RESTARTS} times before it was ready: {self._log}")

    def kill(self) -> None:
        """At once, whatever it does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it stopped."""
        self.process.send_signal(signal.SIGCONT)


class Versions:
    """The base folder that all replicas serve from."""

    def __init__(self, version: Path, out: Path) -> None:
        self.out = out
        self._newest = 1
        shutil.copytree(version, out / "1")

    def publish(self) -> None:
        """The same weights as the next version; the oldest but one goes."""
        self._copy(self._newest + 1)
        self._newest += 1
        for folder in self.out.iterdir():
            if folder.name.isdecimal() and int(folder.name) < self._newest - 1:
                shutil.rmtree(folder)

    def publish_corrupt(self) -> Path:
        """A newer version whose graph is cut short; its folder."""
        return self._copy(self._newest + 1_000_000, cut=True)

    def _copy(self, number: int, cut: bool = False) -> Path:
        """Whole before it has its name, as every publisher should."""
        partial = self.out / f".{number}"
        shutil.copytree(self.out / str(self._newest), partial)
        if cut:
            graph = partial / "saved_model.pb"
            os.truncate(graph, graph.stat().st_size // 2)
        return partial.rename(self.out / str(number))


class HostileReplica:
    """Describes itself as ``model`` does, then answers with bytes, types, shapes or
    numbers that no model has.
    """

    def __init__(self, model: str, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._channel = grpc.insecure_channel(model)
        self._describe = self._channel.unary_unary(PREDICT)
        self.answers = 0
        service, method = PREDICT[1:].split("/")
        handler = grpc.method_handlers_generic_handler(
            service, {method: grpc.unary_unary_rpc_method_handler(self._predict)}
        )
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((handler,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.target = f"127.0.0.1:{port}"

    def __enter__(self) -> HostileReplica:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def _predict(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = codec.decode_predict_request(request)
        spec = asked.model
        if spec.signature in ("describe", "tokenizer"):
            try:
                return self._describe(request, timeout=10)
            except grpc.RpcError:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the model is away")
        self.answers += 1
        if self._rng.random() < 0.3:
            return self._rng.bytes(int(self._rng.integers(1, 200)))
        version = spec.version or int(self._rng.choice([1, 2, 3, 10**6]))
        named = codec.ModelSpec(spec.name, spec.signature, version)
        rows = len(next(iter(asked.inputs.values())))
        values = [
            np.full([rows, 8], np.nan, np.float32),
            np.full([rows, 8], -(2**31), np.int32),
            np.zeros([0, 3], np.float64),
            np.array([b"\x1b[2J"] * 4, object),
        ]
        names = ("tokens", "logprobs", "count", "new_cache", "logits", "alive", "cache")
        outputs = {name: values[self._rng.integers(4)] for name in names}
        if spec.signature == "session_open":  # so that sessions come here
            outputs["slot"] = np.zeros(rows, np.int32)
            outputs["ticket"] = np.ones(rows, np.int64)
        return codec.encode_predict_response(named, outputs)
