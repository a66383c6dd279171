"""Replies of a server that answers anything: an error of ours, or a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optserve.runtime import Client, OptserveError, Sampling, ServerError, codec
from optserve.runtime.errors import MalformedMessage
from optserve.runtime.transports.base import Call, Reply, Transport

from tests.runtime.numpy_model import NumpyTransport

from .mutations import changed_bytes, changed_json, hostile_array, pick

pytestmark = pytest.mark.fuzz
PROMPTS = [[2, 5, 6, 7], [2, 9]]


class Garbage(Transport):
    """A transport that changes what a right one answers, but not the description."""

    def __init__(self, rng: np.random.Generator, model: NumpyTransport) -> None:
        self.rng, self.model = rng, model
        self.calls = 0
        self.wrong = int(rng.integers(4))  # the call from which on answers are changed

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        try:
            reply = self.model.call(call)
        except ValueError as error:  # of what an earlier answer put into the cache
            raise ServerError(str(error), "INTERNAL") from None
        if call.signature in ("describe", "tokenizer"):
            return reply
        self.calls += 1
        if self.calls <= self.wrong:
            return reply
        outputs = dict(reply.outputs)
        name = pick(self.rng, sorted(outputs))
        if self.rng.random() < 0.2:
            del outputs[name]
        else:
            outputs[name] = hostile_array(self.rng, outputs[name])
        return replace(reply, outputs=outputs)

    def close(self) -> None:
        pass


MODELS = {
    "steps": {},
    "generate_4": {"generate": (4,)},
    "sessions": {"generate": (4,), "sessions": {"slots": 2, "positions": 40}},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> NumpyTransport:
    """With and without a loop in the graph, and caches in the server."""
    return NumpyTransport(checkpoint_digest="a" * 64, **MODELS[request.param])


def test_outputs(fuzz, model):
    def target(rng: np.random.Generator) -> str:
        sampling = Sampling(temperature=0.8, seed=3) if rng.random() < 0.5 else None
        try:
            prefixes = 1 << 20 if rng.random() < 0.5 else None
            garbage = Garbage(rng, model)
            with Client(transport=garbage, prefix_cache=prefixes) as client:
                match rng.integers(3):
                    case 0:
                        client.score(PROMPTS)
                    case 1:
                        client.embed(PROMPTS)
                    case _:
                        client.generate(PROMPTS, max_new_tokens=6, sampling=sampling)
        except OptserveError:
            return "refused"
        return "answered"

    counts = fuzz(target)
    assert counts["refused"] > counts.total() // 5


def test_bytes(fuzz, model):
    """The codec reads or refuses them, however they were changed."""
    call = Call("prefill", {"input_ids": np.ones([1, 3], np.int32)} | _lengths(3))
    outputs = model.call(call).outputs
    whole = [
        codec.encode_predict_response(
            codec.ModelSpec("m", "prefill", 1), outputs, tensor_content=raw
        )
        for raw in (False, True)
    ]

    def target(rng: np.random.Generator) -> str:
        data = changed_bytes(rng, pick(rng, whole))
        try:
            reply = codec.decode_predict_response(data, expansion_limit=1 << 20)
        except MalformedMessage:
            return "refused"
        assert sum(a.nbytes for a in reply.outputs.values()) < 1 << 22
        return "read"

    fuzz(target, share=5)


def test_manifests(fuzz, model):
    """What a client is told a model is."""
    text = model.manifest.to_json()

    class Told(Transport):
        def __init__(self, manifest: bytes) -> None:
            self.manifest = manifest

        def call(self, call: Call, *, timeout: float | None = None) -> Reply:
            if call.signature == "describe":
                return Reply({"manifest": np.array([self.manifest], object)}, 1)
            return model.call(call)

        def close(self) -> None:
            pass

    def target(rng: np.random.Generator) -> str:
        try:
            with Client(transport=Told(changed_json(rng, text))) as client:
                client.generate(PROMPTS, max_new_tokens=3)
        except OptserveError as error:
            assert str(error).isprintable(), ascii(str(error))
            return "refused"
        return "used"

    fuzz(target, share=2)


def _lengths(length: int) -> dict[str, np.ndarray]:
    return {"input_length": np.array([length], np.int32)}
