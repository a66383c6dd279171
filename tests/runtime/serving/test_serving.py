"""What any server of our export must do; nothing is assumed of the model itself."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest
from optserve.runtime import (
    AsyncClient,
    Beams,
    Client,
    Constraints,
    DeadlineExceeded,
    IncompatibleModel,
    OptserveError,
    Sampling,
)
from optserve.runtime.contract import signature
from optserve.runtime.decoding.driver import run
from optserve.runtime.decoding.task import with_deadline
from optserve.runtime.transports.base import Call

from .conftest import MODEL

pytestmark = pytest.mark.serving
WARM = Sampling(temperature=0.9, top_k=50, top_p=0.95, seed=7)
NEW = 12


@pytest.fixture(scope="module")
def prompts(client) -> list[list[int]]:
    """Prompts of unequal lengths, the longest near a fifth of the positions."""
    manifest = client.describe()
    rng = np.random.default_rng(1)
    longest = max(4, min(200, manifest.max_positions // 5))
    high = min(manifest.vocab_size, 5000)
    return [
        [manifest.bos_token_id, *rng.integers(4, high, int(n)).tolist()]
        for n in (1, longest - 1, 3, longest // 2, 2)
    ]


@pytest.fixture(scope="module")
def exact(client) -> bool:
    """Whether the numbers are float32, so that other paths give equal tokens."""
    manifest = client.describe()
    return manifest.weights_dtype == manifest.cache_dtype == "float32"


def call(client: Client, name: str, **inputs: np.ndarray):
    """One raw call of a signature."""

    def work():
        return (yield Call(name, inputs))

    return run(with_deadline(work(), time.monotonic() + 120), client._transport).outputs


def same_logits(tokens, logits):
    """A processor that changes nothing: the client then chooses by itself."""
    return logits


def test_the_manifest_describes_what_is_served(client):
    manifest = client.describe()
    needed = {"prefill", "decode", "score", "embed", "describe", "serving_default"}
    assert needed <= set(manifest.signatures)
    for name in manifest.signatures:
        assert signature(name, manifest.cache_layout).name == name
    assert client.model_version >= 0


PENALIZED = Sampling(temperature=0, presence_penalty=1.0, frequency_penalty=0.3)


@pytest.mark.parametrize(
    "sampling",
    [None, WARM, Sampling(min_p=0.02, repetition_penalty=1.2, seed=5), PENALIZED],
    ids=["greedy", "sampled", "min_p", "penalized"],
)
def test_tokens_do_not_depend_on_neighbours_or_on_who_chooses(
    client, prompts, exact, sampling
):
    options = {"max_new_tokens": NEW, "sampling": sampling, "stop_token_ids": []}
    together = [g.tokens for g in client.generate(prompts, **options)]
    assert all(len(tokens) == NEW for tokens in together)
    again = [g.tokens for g in client.generate(prompts, **options)]
    assert together == again
    if exact:
        alone = [client.generate([p], **options)[0].tokens for p in prompts]
        stepwise = client.generate(prompts, processors=[same_logits], **options)
        assert alone == together
        assert [g.tokens for g in stepwise] == together


def test_streams_join_to_the_same(client, prompts):
    stream = client.stream(
        prompts[0], max_new_tokens=NEW, sampling=WARM, stop_token_ids=[]
    )
    chunks = list(stream)
    result = stream.generation
    assert [t for chunk in chunks for t in chunk.tokens] == result.tokens
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    assert result.counters.calls == len(chunks)
    assert 0 < result.counters.first_token_seconds <= result.counters.seconds


def test_stop_tokens_end_a_row(client, prompts):
    (free,) = client.generate([prompts[1]], max_new_tokens=NEW, stop_token_ids=[])
    token = free.tokens[4]
    (ended,) = client.generate([prompts[1]], max_new_tokens=NEW, stop_token_ids=[token])
    assert ended.tokens == free.tokens[: free.tokens.index(token) + 1]
    assert (ended.finish_reason, ended.stopped_by) == ("stop", token)


def test_logprobs_agree_with_score(client, prompts, exact):
    results = client.generate(prompts, max_new_tokens=NEW, stop_token_ids=[])
    whole = [p + g.tokens for p, g in zip(prompts, results, strict=True)]
    for g, score in zip(results, client.score(whole), strict=True):
        np.testing.assert_allclose(
            g.logprobs, score.logprobs[-NEW:], atol=1e-3 if exact else 0.5
        )
        assert score.perplexity >= 1


def test_biases_and_likeliest_tokens(client, prompts, exact):
    """In the graph as where the client chooses; nothing is said of equal numbers."""
    rules = Constraints(logit_bias={9: 2.0, 11: -math.inf}, min_new_tokens=3)
    options = {"max_new_tokens": NEW, "constraints": rules, "top_logprobs": 4}
    results = client.generate(prompts, **options)
    stepwise = client.generate(prompts, processors=[same_logits], **options)
    for g, other in zip(results, stepwise, strict=True):
        assert len(g.tokens) >= 3 and 11 not in g.tokens
        assert [len(step) for step in g.top_logprobs] == [4] * len(g.tokens)
        if exact:
            assert g.tokens == other.tokens
            for step, likeliest in zip(g.top_logprobs, other.top_logprobs, strict=True):
                collected, expected = dict(step), dict(likeliest)
                np.testing.assert_allclose(
                    sorted(collected.values()), sorted(expected.values()), atol=1e-3
                )


def test_scores_of_texts_that_begin_alike(client, prompts, exact):
    opening = (prompts[1] * 40)[:40]
    texts = [[*opening, *p[1:]] for p in prompts]
    together = client.score(texts, top_logprobs=3)
    for text, score in zip(texts, together, strict=True):
        (alone,) = client.score([text], top_logprobs=3)
        tolerance = 1e-3 if exact else 0.5
        np.testing.assert_allclose(
            score.logprobs[1:], alone.logprobs[1:], atol=tolerance
        )
        likeliest = [[x for _, x in step] for step in score.top_logprobs[1:]]
        others = [[x for _, x in step] for step in alone.top_logprobs[1:]]
        np.testing.assert_allclose(likeliest, others, atol=tolerance)
        assert 0 <= score.greedy_agreement <= 1


def test_serving_default_takes_padding_on_either_side(client, prompts, exact):
    manifest = client.describe()
    prompt = prompts[3]
    ids = np.full((2, len(prompt) + 3), manifest.pad_token_id, np.int32)
    mask = np.zeros_like(ids)
    for b, places in enumerate((slice(3, None), slice(None, len(prompt)))):
        ids[b, places], mask[b, places] = prompt, 1
    logits = call(client, "serving_default", input_ids=ids, attention_mask=mask)
    left, right = logits["logits"][0, -1], logits["logits"][1, len(prompt) - 1]
    length = np.array([len(prompt)], np.int32)
    last = call(
        client,
        "prefill",
        input_ids=np.array([prompt], np.int32),
        input_length=length,
    )["logits"][0]
    tolerance = 1e-3 if exact else 0.5
    np.testing.assert_allclose(left, last, atol=tolerance)
    np.testing.assert_allclose(right, last, atol=tolerance)


def test_embeddings_have_the_prompts_lengths(client, prompts):
    states = client.embed(prompts)
    for mean, hidden in zip(client.embed(prompts, pooled=True), states, strict=True):
        np.testing.assert_allclose(mean, hidden.mean(0), atol=1e-3)
    shapes = [hidden.shape for hidden in states]
    assert [rows for rows, _ in shapes] == [len(p) for p in prompts]
    assert len({width for _, width in shapes}) == 1


def test_beam_search_is_at_least_as_likely_as_greedy(client, prompts, exact):
    options = {"max_new_tokens": 6, "stop_token_ids": []}
    (greedy,) = client.generate([prompts[0]], **options)
    (best,) = client.generate(
        [prompts[0]], beams=Beams(width=4, returned=2, length_penalty=0.0), **options
    )
    assert best.score >= best.alternatives[0].score
    np.testing.assert_allclose(best.score, sum(best.logprobs), atol=1e-3)
    if exact:
        assert best.score >= sum(greedy.logprobs) - 1e-3


def test_a_conversation_equals_one_long_prompt(client, prompts, exact):
    talk = client.conversation()
    for prompt in (prompts[0], prompts[2][1:]):
        list(talk.say(prompt, max_new_tokens=5, stop_token_ids=[]))
    tokens = talk.tokens
    (whole,) = client.generate([tokens[:-5]], max_new_tokens=5, stop_token_ids=[])
    if exact:
        assert whole.tokens == tokens[-5:]
    assert talk.cached_tokens >= len(tokens) - 1


def test_many_streams_at_once_give_the_same(client, target, prompts, exact):
    options = {"max_new_tokens": NEW, "sampling": WARM, "stop_token_ids": []}
    expected = [g.tokens for g in client.generate(prompts, **options)]

    async def read(stream):
        return [token async for chunk in stream for token in chunk.tokens]

    async def go():
        async with AsyncClient(target, model=MODEL) as other:
            streams = [other.stream(p, **options) for p in prompts * 4]
            return await asyncio.gather(*map(read, streams))

    streamed = asyncio.run(go())
    assert all(len(tokens) == NEW for tokens in streamed)
    if exact:
        assert streamed == expected * 4


def test_text_in_and_out(client):
    if client.tokenizer is None:
        pytest.skip("this export holds no tokenizer")
    (result,) = client.generate(["Good morrow"], max_new_tokens=NEW)
    assert result.text == client.tokenizer.decode(result.tokens)
    free = client.generate(["Good morrow"], max_new_tokens=NEW, stop_token_ids=[])[0]
    if len(free.text) > 4:
        stop = free.text[2:4]
        (cut,) = client.generate(
            ["Good morrow"], max_new_tokens=NEW, stop=[stop], stop_token_ids=[]
        )
        assert cut.text == free.text[: free.text.index(stop)]


def test_mistakes_are_refused_with_our_own_errors(client, target, prompts):
    with pytest.raises(OptserveError):
        Client(target, model="no-such-model-here", connect_timeout=20.0)
    with pytest.raises(IncompatibleModel):
        call(client, "no_such_signature", x=np.zeros(1, np.int32))
    with pytest.raises(DeadlineExceeded):
        client.generate([prompts[0]], max_new_tokens=NEW, timeout=1e-4)


def test_the_official_stub_reads_it_too(target, prompts):
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tensorflow_serving.apis")
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.model_spec.signature_name = "prefill"
    inputs = {"input_ids": [prompts[3]], "input_length": [len(prompts[3])]}
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(value, np.int32)))
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target[0], options=unlimited) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reply = stub.Predict(request, timeout=120)
    logits = tf.make_ndarray(reply.outputs["logits"])
    with Client(target, model=MODEL) as client:
        (result,) = client.generate(
            [prompts[3]], max_new_tokens=1, top_logprobs=1, stop_token_ids=[]
        )
    assert int(logits[0].argmax()) == result.tokens[0]


def test_some_outputs_of_a_score_are_those_of_all(client, prompts, exact):
    """By the names of the contract's table alone."""
    ids = np.array([prompts[3]], np.int32)
    rows = client.describe().cache_layout.row_shape
    inputs = {
        "input_ids": ids,
        "input_length": np.array([ids.size], np.int32),
        "cache": np.zeros([1, 0, *rows], np.float32),
        "cache_length": np.zeros(1, np.int32),
    }
    (expected,) = client.score([prompts[3]], top_logprobs=5)
    tolerance = 1e-3 if exact else 0.5
    for fetched in ((), ("logprobs",), ("logprobs", "top_ids", "top_logprobs")):
        outputs = client._transport.call(Call("score", inputs, fetched)).outputs
        assert set(outputs) == set(fetched) or not fetched
        logprobs = outputs["logprobs"][0, 1 : ids.size]
        np.testing.assert_allclose(logprobs, expected.logprobs[1:], atol=tolerance)
