"""Replies that are not what was asked for: an error that says so, never a result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from optserve.runtime import Client, MalformedReply, OptserveError
from optserve.runtime.contract import CacheLayout
from optserve.runtime.decoding.expected_reply import EXPECTED_MANIFEST, _check_cache

from tests.runtime.numpy_model import NumpyTransport

PROMPTS = [[2, 5, 9], [2, 7]]
Change = Callable[[np.ndarray], "np.ndarray | None"]


def put(value: float, *place: int) -> Change:
    """A change of one value."""

    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed[place or (0,) * array.ndim] = value
        return changed

    return change


def typed(dtype: str) -> Change:
    return lambda array: array.astype(dtype)


WRONG: dict[str, list[Change]] = {
    "any": [
        lambda array: None,
        lambda array: array[:1],
        lambda array: np.concatenate([array, array]),
        lambda array: array[..., None],
        lambda array: array[0],
        lambda array: np.float32(1),
        lambda array: array.reshape(-1)[:0],
        typed("float64"),
        typed("int64"),
        typed("complex64"),
        lambda array: array.astype(str).astype(object),
        lambda array: np.broadcast_to(array.reshape(-1)[:1], (2, 1 << 28)),
    ],
    "count": [put(0), put(-1), put(3), put(2**31 - 1), put(-(2**31)), put(0, 1)],
    "tokens": [put(-1), put(128), put(2**31 - 1), put(-(2**31)), put(-5, 1, 0)],
    "logprobs": [put(np.nan), put(np.inf), put(-np.inf), put(0.1), put(np.nan, 1, 0)],
    "top_ids": [put(128, 0, 1), put(-1, 1, 1, 1), put(2**31 - 1, 0, 1, 0)],
    "top_logprobs": [put(np.nan, 0, 1), put(0.1, 1, 1, 1), put(-np.inf, 1)],
    "logits": [put(np.nan), put(np.inf), put(-np.inf), put(np.nan, 1, 127)],
    "new_cache": [put(np.nan), put(np.inf), put(np.nan, 1, 1, 2, 1, 3, 7)],
}


def cases(*outputs: str) -> list:
    return [
        pytest.param(output, change, id=f"{output}-{number}")
        for output in outputs
        for number, change in enumerate(WRONG["any"] + WRONG[output])
    ]


def lying(output: str, change: Change, **options) -> NumpyTransport:
    """A model that changes one output of every call that makes tokens or scores."""

    def lie(call, outputs) -> None:
        if output in outputs:
            changed = change(outputs[output])
            outputs.pop(output)
            if changed is not None:
                outputs[output] = np.asarray(changed)

    transport = NumpyTransport(**options)
    with_manifest = transport.call

    def call(request, *, timeout=None):
        transport.lie = None if request.signature == "describe" else lie
        return with_manifest(request, timeout=timeout)

    transport.call = call
    return transport


@pytest.mark.parametrize(
    ("output", "change"), cases("count", "tokens", "logprobs", "new_cache")
)
def test_replies_of_generate(output, change):
    with (
        Client(transport=lying(output, change, generate=(2,))) as client,
        pytest.raises(MalformedReply, match=f"makes no sense .*'{output}'"),
    ):
        client.generate(PROMPTS, max_new_tokens=2, stop_token_ids=[])


@pytest.mark.parametrize(("output", "change"), cases("top_ids", "top_logprobs"))
def test_the_likeliest_of_generate(output, change):
    with (
        Client(transport=lying(output, change, generate=(2,))) as client,
        pytest.raises(MalformedReply, match=f"makes no sense .*'{output}'"),
    ):
        client.generate(PROMPTS, max_new_tokens=2, stop_token_ids=[], top_logprobs=2)


@pytest.mark.parametrize(("output", "change"), cases("logits", "new_cache"))
def test_replies_of_prefill_and_decode(output, change):
    with (
        Client(transport=lying(output, change)) as client,
        pytest.raises(MalformedReply, match=f"makes no sense .*'{output}'"),
    ):
        client.generate(PROMPTS, max_new_tokens=2, stop_token_ids=[])


@pytest.mark.parametrize(
    "change", [*WRONG["any"], put(np.nan, 0, 1), put(np.inf, 1, 1), put(0.1, 1, 2)]
)
def test_scores(change):
    with (
        Client(transport=lying("logprobs", change)) as client,
        pytest.raises(MalformedReply, match="makes no sense"),
    ):
        client.score(PROMPTS)


@pytest.mark.parametrize(
    "change", [*WRONG["any"], put(np.nan), put(np.inf, 1, 1, 3), lambda a: a[..., :5]]
)
def test_embeddings(change):
    with (
        Client(transport=lying("last_hidden_state", change)) as client,
        pytest.raises(MalformedReply, match="makes no sense"),
    ):
        client.embed(PROMPTS)


@pytest.mark.parametrize("change", [*WRONG["any"], put(np.nan), put(np.inf, 1, 3)])
def test_means_of_embeddings(change):
    with (
        Client(transport=lying("pooled", change)) as client,
        pytest.raises(MalformedReply, match="makes no sense"),
    ):
        client.embed(PROMPTS, pooled=True)


@pytest.mark.parametrize(("output", "change"), cases("top_ids", "top_logprobs"))
def test_the_likeliest_of_scores(output, change):
    with (
        Client(transport=lying(output, change)) as client,
        pytest.raises(MalformedReply, match=f"makes no sense .*'{output}'"),
    ):
        client.score(PROMPTS, top_logprobs=5)


def test_the_first_tokens_score_and_padding_may_be_anything():
    def lie(call, outputs):
        if call.signature == "score":
            outputs["logprobs"][:, 0] = np.nan
        if call.signature in ("score", "embed"):
            name = {"score": "logprobs", "embed": "last_hidden_state"}[call.signature]
            array = outputs[name]
            for row, length in zip(array, call.inputs["input_length"], strict=True):
                row[length:] = np.nan

    with Client(transport=NumpyTransport(lie=lie)) as client:
        plain = Client(transport=NumpyTransport())
        for got, expected in zip(
            client.score(PROMPTS), plain.score(PROMPTS), strict=True
        ):
            np.testing.assert_array_equal(got.logprobs, expected.logprobs)
        for got, expected in zip(
            client.embed(PROMPTS), plain.embed(PROMPTS), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


def test_a_server_that_pads_inputs_answers_with_more_slots():
    def lie(call, outputs):
        if "new_cache" in outputs:
            outputs["new_cache"] = np.pad(
                outputs["new_cache"], [(0, 0), (0, 24)] + [(0, 0)] * 4
            )

    options = {"max_new_tokens": 6, "stop_token_ids": []}
    with Client(transport=NumpyTransport(lie=lie)) as client:
        padded = client.generate(PROMPTS, **options)
    with Client(transport=NumpyTransport()) as client:
        assert [g.tokens for g in padded] == [
            g.tokens for g in client.generate(PROMPTS, **options)
        ]


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 4), ("int8", 3)])
def test_a_packed_cache_is_looked_at_as_what_it_holds(dtype, width):
    layout = CacheLayout(layers=1, heads=1, head_dim=8, dtype=dtype)
    kept = np.zeros((1, 3, 1, 2, 1, width), np.float32)
    bits = kept.view(np.uint16 if dtype == "bfloat16" else np.uint32)
    if dtype == "int8":
        bits[..., :-1] = 0x7FC0_0001  # four integers that, as a float, would be NaN
    _check_cache(kept, [2], layout)
    place = (0, 1, 0, 1, 0, -2 if dtype == "bfloat16" else -1)
    bits[place] = 0x7FC0 if dtype == "bfloat16" else 0x7FC0_0000
    _check_cache(kept, [1], layout)  # the row after the last is not kept
    with pytest.raises(MalformedReply, match=r"new_cache.* NaN"):
        _check_cache(kept, [2], layout)


def test_numbers_whose_sum_overflows_are_numbers():
    layout = CacheLayout(layers=1, heads=1, head_dim=8)
    _check_cache(np.full((1, 4, 1, 2, 1, 8), 3e38, np.float32), [4], layout)


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        np.array([], object),
        np.array([b"{}", b"{}"], object),
        np.array(["{"], object),
        np.array([7], object),
        np.zeros(1, np.float32),
        np.broadcast_to(np.array(b"", object), (1 << 20, 1 << 20)),
        np.array([b"[" * 100_000], object),
        np.array([b'{"config": NaN}'], object),
    ],
)
def test_descriptions(manifest):
    def lie(call, outputs):
        outputs.pop("manifest")
        if manifest is not None:
            outputs["manifest"] = manifest

    with pytest.raises(MalformedReply):
        Client(transport=NumpyTransport(lie=lie))


def test_manifests_are_read_as_data():
    good = NumpyTransport().manifest.to_json()
    for old, new in (
        ('"vocab_size": 128', '"vocab_size": -5'),
        ('"vocab_size": 128', '"vocab_size": 1e99'),
        ('"max_positions": 64', '"max_positions": true'),
        ('"num_hidden_layers": 3', '"num_hidden_layers": 1e9'),
        ('"generate": []', '"generate": ["x"]'),
        ('"batch_sizes": []', '"batch_sizes": [4, 2]'),
        ('"framework": "tf"', '"framework": "\\u001b[2J"'),
    ):
        assert old in good
        text = np.array([good.replace(old, new).encode()], object)

        def lie(call, outputs, text=text):
            outputs["manifest"] = text

        with pytest.raises(OptserveError) as caught:
            Client(transport=NumpyTransport(lie=lie))
        assert "\x1b" not in str(caught.value)


def test_a_text_longer_than_any_manifest_is_not_received():
    assert EXPECTED_MANIFEST.most_bytes < 17 << 20
