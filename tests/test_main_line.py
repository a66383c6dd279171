"""The main line on the shipped checkpoint: export, serve, generate over gRPC.

What comes back is compared with the Keras model's own greedy loop, and the server is
driven a second time through the official TensorFlow Serving stub alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from optserve.models.tokenizer import Tokenizer
from optserve.runtime import Client
from optserve.runtime.contract import Manifest
from optserve.runtime.server import EmbeddedServer

from tests.export.exports import TINY, exported_tiny

ROOT = Path(__file__).parents[1]
PROMPT = "ROMEO:"
NEW = 40


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """The shipped checkpoint behind the embedded server."""
    with EmbeddedServer(exported_tiny().parent) as server:
        yield server


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """Greedy tokens of the Keras model, the whole sequence fed anew at each step."""
    import tensorflow as tf
    from optserve.models import TFOPTForCausalLM

    model = TFOPTForCausalLM.from_pretrained(TINY)
    ids = Tokenizer.from_directory(TINY).encode(PROMPT)
    forward = tf.function(
        lambda x: model(input_ids=x, use_cache=False).logits[0, -1],
        input_signature=[tf.TensorSpec([1, None], tf.int32)],
    )
    for _ in range(NEW):
        ids.append(int(np.argmax(forward(tf.constant([ids])))))
    return ids[-NEW:]


def test_client_makes_the_keras_models_tokens(server, expected):
    with Client(server.target) as client:
        (generation,) = client.generate([PROMPT], max_new_tokens=NEW)
        chunks = list(client.stream(PROMPT, max_new_tokens=NEW))
    assert generation.tokens == expected
    assert [token for chunk in chunks for token in chunk.tokens] == expected
    assert "".join(chunk.text for chunk in chunks) == generation.text
    assert generation.finish_reason == "length"


def test_the_readmes_code_runs(server, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    codes = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for code in codes:
        exec(code.replace("127.0.0.1:8500", server.target), {})
    assert len(codes) == 2
    assert "(1, 3, 1024)" in capsys.readouterr().out  # the last thing printed


def test_official_stub_makes_the_same_tokens(server, expected):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    def predict(signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "opt"
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        outputs = stub.Predict(request, timeout=60).outputs
        return {name: tf.make_ndarray(value) for name, value in outputs.items()}

    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        row = np.zeros(1, np.int32)
        manifest = Manifest.from_json(predict("describe", row=row)["manifest"][0])
        tokenizer = predict("tokenizer", row=row)["tokenizer"][0]
        ids = Tokenizer.from_json(tokenizer).encode(PROMPT)

        prompt = np.array([ids], np.int32)
        length = np.array([len(ids)], np.int32)
        reply = predict("prefill", input_ids=prompt, input_length=length)
        cache, tokens = reply["new_cache"], []
        while True:
            tokens.append(int(np.argmax(reply["logits"][0])))
            if len(tokens) == NEW:
                break
            reply = predict(
                "decode",
                input_ids=np.array([[tokens[-1]]], np.int32),
                input_length=np.ones(1, np.int32),
                cache=cache,
                cache_length=np.array([cache.shape[1]], np.int32),
            )
            cache = np.concatenate([cache, reply["new_cache"]], axis=1)
    assert manifest.contract_version == 2
    assert tokens == expected


def test_the_shipped_checkpoint_reads_like_its_corpus(server):
    """Sampled text is made of the corpus's words, and its card's figure holds."""
    from optserve.runtime import Sampling

    corpus = (Path(__file__).parent / "data" / "tinyshakespeare.txt").read_text()
    known = set(corpus.lower().split())
    with Client(server.target) as client:
        sampling = Sampling(temperature=0.7, top_p=0.9, seed=7)
        (generation,) = client.generate([PROMPT], max_new_tokens=200, sampling=sampling)
    words = generation.text.lower().split()[:-1]
    assert len(words) > 50
    assert sum(word in known for word in words) / len(words) > 0.8


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        (20_000, "first_20000"),
        pytest.param(None, "held_out", marks=pytest.mark.slow),
    ],
)
def test_the_shipped_checkpoints_held_out_loss(characters, name):
    """The same weights give both figures, so the quick one holds the other."""
    from optserve.models import TFOPTForCausalLM
    from optserve.models.examples.train_tiny import nats_per_character, split

    corpus = Path(__file__).parent / "data" / "tinyshakespeare.txt"
    _, held_out = split(corpus.read_text(encoding="utf-8"))
    model = TFOPTForCausalLM.from_pretrained(TINY)
    loss = nats_per_character(model, held_out[:characters], TINY)
    reported = json.loads((TINY / "evaluation.json").read_text())
    assert loss == pytest.approx(reported[f"{name}_nats_per_character"], abs=2e-3)
    assert reported["held_out_nats_per_character"] <= 1.55
