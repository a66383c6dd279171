"""Generation inside the graph: against Transformers' tokens and the numpy sampler."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.models.generation.sampling import log_softmax
from optserve.runtime.sampling import Sampling, choose, likeliest
from optserve.runtime.server.serving_error import ServingError

from tests.export.exports import (
    COMPILED_FOR_ONE,
    COMPILED_LOOPS,
    INT8_SESSIONS,
    choosing,
    expected,
    int32,
    served,
)

ROUTES = {"tf-none": {}, "tf-xla": COMPILED_LOOPS, "jax-xla": {"framework": "jax"}}
CASE = "pre_ln"
SEED = 7 + (9 << 32)
MIXED = {  # one row of each kind
    "temperature": [0.7, 0.0, 1.3],
    "top_k": [5, 0, 0],
    "top_p": [0.9, 1.0, 0.8],
    "repetition_penalty": [1.2, 1.3, 1.0],
}


@pytest.fixture(scope="module", params=ROUTES)
def model(request):
    return served(CASE, **ROUTES[request.param])


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    golden = expected(CASE)
    mask = golden["left_mask"].astype(bool)
    return [golden["ids_left"][b, mask[b]].tolist() for b in range(3)]


def ragged(rows, fill: int = -1) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), fill, np.int32)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return out


def generate(model, n: int, fed, *, cache=None, cached=None, **options):
    B = len(fed)
    if cache is None:
        cache = np.zeros((B, 0, 3, 2, 4, model.width), np.float32)
        cached = np.zeros(B, np.int32)
    return model(
        f"generate_{n}",
        input_ids=ragged(fed, 1),
        input_length=int32(*map(len, fed)),
        cache=cache,
        cache_length=cached,
        max_new_tokens=int32(*(options.pop("max_new_tokens", None) or [n] * B)),
        **choosing(B, **options),
    )


def test_greedy_equals_the_reference(model, prompts):
    golden = expected(CASE)["greedy"]
    reply = generate(model, 24, prompts)
    np.testing.assert_array_equal(reply["tokens"], golden)
    assert reply["count"].tolist() == [24, 24, 24]
    alone = generate(model, 24, prompts[:1])
    np.testing.assert_array_equal(alone["tokens"], golden[:1])


def test_an_export_for_single_rows_alone(prompts):
    reply = generate(served(CASE, **COMPILED_FOR_ONE), 8, prompts[:1])
    np.testing.assert_array_equal(reply["tokens"], expected(CASE)["greedy"][:1, :8])


def test_more_rows_than_are_compiled_for(model, prompts):
    """They go through in groups, the last of them filled up, and come back in order;
    in the TensorFlow route through a loop that takes any number."""
    order = [0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 1]
    few = generate(model, 24, prompts)
    many = generate(model, 24, [prompts[b] for b in order])
    np.testing.assert_array_equal(many["tokens"], expected(CASE)["greedy"][order])
    np.testing.assert_array_equal(many["count"], few["count"][order])
    np.testing.assert_allclose(many["logprobs"], few["logprobs"][order], atol=1e-5)
    for got, b in zip(many["new_cache"], order, strict=True):
        fed = len(prompts[b]) + 23  # what lies behind is arbitrary
        np.testing.assert_allclose(got[:fed], few["new_cache"][b, :fed], atol=1e-5)


def test_tokens_do_not_depend_on_calls_or_neighbours(model, prompts):
    """Three calls of 8 with the cache carried, and single rows, give one call's 24."""
    whole = generate(model, 24, prompts, history=ragged(prompts), **MIXED)["tokens"]
    cache = np.full((3, 48, 3, 2, 4, 8), np.nan, np.float32)
    cached, seen, fed = np.zeros(3, np.int32), [list(p) for p in prompts], prompts
    for _ in range(3):
        history = ragged(seen)
        reply = generate(
            model, 8, fed, cache=cache, cached=cached, history=history, **MIXED
        )
        for b in range(3):
            new = len(fed[b]) + reply["count"][b] - 1
            cache[b, cached[b] : cached[b] + new] = reply["new_cache"][b, :new]
            cached[b] += new
            seen[b] += reply["tokens"][b].tolist()
        fed = [row[-1:] for row in seen]
    generated = [row[len(p) :] for row, p in zip(seen, prompts, strict=True)]
    np.testing.assert_array_equal(generated, whole)
    for b, prompt in enumerate(prompts):
        mine = {key: value[b : b + 1] for key, value in MIXED.items()}
        alone = generate(model, 24, [prompt], history=[prompt], **mine)
        np.testing.assert_array_equal(alone["tokens"][0], whole[b])


def logits_of(model, sequence: list[int]) -> np.ndarray:
    """Logits [T,V] after each token, of the whole sequence at once."""
    ids = ragged([sequence + [1] * (40 - len(sequence))])
    mask = (np.arange(40) < len(sequence)).astype(np.int32)[None]
    logits = model("serving_default", input_ids=ids, attention_mask=mask)["logits"]
    return logits[0, : len(sequence)]


def test_sampling_equals_numpy(model, prompts):
    reply = generate(model, 24, prompts, history=ragged(prompts), **MIXED)
    for b, prompt in enumerate(prompts):
        sampling = Sampling(seed=SEED, **{key: MIXED[key][b] for key in MIXED})
        row = prompt + reply["tokens"][b].tolist()
        logits = logits_of(model, row)
        for i in range(24):
            n = len(prompt) + i
            token, logprob = choose(
                logits[n - 1], sampling, position=n, history=row[:n]
            )
            assert token == reply["tokens"][b, i]
            assert logprob == pytest.approx(float(reply["logprobs"][b, i]), abs=1e-4)
    assert (reply["top_ids"] == -1).all() and not reply["top_logprobs"].any()


MODIFIED = {  # one row of each kind, the last with nothing
    "temperature": [0.9, 0.0, 1.1, 0.0],
    "min_p": [0.02, 0.0, 0.3, 0.0],
    "top_k": [0, 0, 20, 0],
    "repetition_penalty": [1.3, 1.0, 1.0, 1.0],
    "presence_penalty": [0.5, 1.5, -1.0, 0.0],
    "frequency_penalty": [0.2, 0.4, 1.0, 0.0],
}
BIAS = [{5: 3.0, 9: -np.inf}, {}, {77: 2.5, 2: 30.0}, {}]
STOPS, LEAST, TOP = [[], [9], [2, 3], []], [0, 3, 6, 0], [5, 0, 2, 0]


def test_modifiers_and_likeliest_tokens_equal_numpy(model, prompts):
    prompts = [*prompts, prompts[0]]
    history = [[-2 - i for i in p] + [7, 7, 9][:b] for b, p in enumerate(prompts)]
    reply = generate(
        model,
        24,
        prompts,
        history=ragged(history),
        stop_ids=ragged([[-1, *stops] for stops in STOPS]),
        min_new_tokens=LEAST,
        bias_ids=ragged([[-1, *bias] for bias in BIAS]),
        bias=[[*[0.0, *bias.values()], 0.0, 0.0][:3] for bias in BIAS],
        top_logprobs=TOP,
        **MODIFIED,
    )
    for b, prompt in enumerate(prompts):
        sampling = Sampling(seed=SEED, **{key: MODIFIED[key][b] for key in MODIFIED})
        count = int(reply["count"][b])
        generated = reply["tokens"][b, :count].tolist()
        logits = logits_of(model, prompt + generated)
        for i in range(count):
            n = len(prompt) + i
            token, logprob = choose(
                logits[n - 1],
                sampling,
                position=n,
                history=history[b] + generated[:i],
                bias=BIAS[b],
                forbidden=STOPS[b] if i < LEAST[b] else (),
            )
            assert token == generated[i]
            assert logprob == pytest.approx(float(reply["logprobs"][b, i]), abs=1e-4)
            ids = likeliest(logits[n - 1], TOP[b])
            logprobs = log_softmax(logits[n - 1])[ids]
            assert reply["top_ids"][b, i, : TOP[b]].tolist() == ids.tolist()
            actual = reply["top_logprobs"][b, i, : TOP[b]]
            np.testing.assert_allclose(actual, logprobs, atol=1e-4)
        assert generated[-1] in STOPS[b] or count == 24
        assert (reply["top_ids"][b, count:] == -1).all()
        assert (reply["top_ids"][b, :, TOP[b] :] == -1).all()
        assert not reply["top_logprobs"][b, :, TOP[b] :].any()


def test_plain_ids_of_history_count_for_each_penalty(model, prompts):
    """Where the second one that came twice is worth less than the first."""
    logits = logits_of(model, prompts[0])[-1].astype(np.float64)
    first, second = np.argsort(-logits)[:2]
    gap = logits[first] - logits[second]
    penalties = {  # each by itself is enough for another token, or just not
        "repetition_penalty": [100, 1, 1, 1, 1],
        "presence_penalty": [0, gap + 0.01, 0, gap - 0.01, 0],
        "frequency_penalty": [0, 0, gap / 2 + 0.01, 0, gap / 2 - 0.01],
    }
    history = np.tile(int32(-1, first, first), (5, 1))
    reply = generate(
        model, 8, prompts[:1] * 5, max_new_tokens=[1] * 5, history=history, **penalties
    )
    assert logits[first] > 0
    assert reply["tokens"][:, 0].tolist() == [second] * 3 + [first] * 2


def test_rows_end_by_themselves(model, prompts):
    greedy = expected(CASE)["greedy"]
    stop = int(greedy[2, 1])
    reply = generate(
        model,
        24,
        prompts,
        max_new_tokens=[0, 5, 24],
        stop_ids=[[-1, -1], [-1, 127], [stop, -1]],
    )
    assert reply["count"].tolist() == [0, 5, 2]
    for b, count in enumerate(reply["count"]):
        assert reply["tokens"][b, :count].tolist() == greedy[b, :count].tolist()
        assert (reply["tokens"][b, count:] == -1).all()


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("bfloat16", {"cache": "bfloat16", "generate": (8,), "only": ("generate_8",)}),
        ("int8", INT8_SESSIONS),
    ],
)
def test_a_smaller_cache_gives_the_same_tokens_in_any_split(prompts, dtype, options):
    model = served(CASE, **options)
    whole = generate(model, 8, prompts)
    half = generate(model, 8, prompts, max_new_tokens=[4] * 3)
    width = half["new_cache"].shape[-1]
    assert width == {"bfloat16": 4, "int8": 3}[dtype]
    cached = int32(*[len(p) + 3 for p in prompts])
    last = half["tokens"][:, 3:4].tolist()
    rest = generate(model, 8, last, cache=half["new_cache"], cached=cached)
    generated = np.concatenate([half["tokens"][:, :4], rest["tokens"][:, :4]], axis=1)
    np.testing.assert_array_equal(generated, whole["tokens"])


@pytest.mark.parametrize(
    ("name", "size", "limit"),
    [("history", 65, 64), ("stop_ids", 129, 128), ("bias_ids", 129, 128)],
)
def test_long_lists_of_ids_are_refused(model, name, size, limit):

    message = f"{name} should have at most {limit} a row"
    with pytest.raises(ServingError, match=message):
        generate(model, 8, [[5]], **{name: [[-1] * size], "bias": [[0.0] * 129]})
