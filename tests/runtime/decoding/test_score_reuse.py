"""What is known of a text's beginning changes what is fed, and never its scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime import Client, PrefixCache
from optserve.runtime.decoding.prefix_cache import BLOCK

from tests.runtime.decoding.test_prefix_reuse import ROW, SHARED, fed, transport
from tests.runtime.decoding.test_scoring import check

BUCKETS = {"prompt_buckets": [4, 8], "cache_buckets": [16, 64]}
TEXTS = [[*SHARED, 40 + i, 50, 51 + i] for i in range(3)]


@pytest.mark.parametrize("top", [0, 3])
@pytest.mark.parametrize("sizes", [{}, BUCKETS])
def test_a_text_that_begins_like_another_feeds_the_rest_alone(sizes, top):
    server = transport(**sizes)
    with Client(transport=server, prefix_cache=1 << 20) as client:
        for number, text in enumerate(TEXTS):
            before = fed(server)
            results = client.score([text], top_logprobs=top)
            check(results, [text], top)
            hit = 2 * BLOCK if number else 0
            assert results[0].cached_tokens == hit
            assert results[0].cached_bytes == hit * ROW
            # The last known token goes once more.
            if hit and not sizes:
                assert fed(server) - before == len(text) - hit + 1


def test_several_texts_share_what_earlier_calls_have_computed():
    server = transport()
    with Client(transport=server, prefix_cache=1 << 20) as client:
        client.score(TEXTS[:2])
        before = fed(server)
        check(client.score(TEXTS, top_logprobs=5), TEXTS, 5)  # not known without top
        assert fed(server) - before > 2 * BLOCK
        for top in (0, 5):
            results = client.score([*TEXTS, [2, 9]], top_logprobs=top)
            check(results, [*TEXTS, [2, 9]], top)
            assert [r.cached_tokens for r in results] == [2 * BLOCK] * 3 + [0]


def test_generation_goes_on_from_what_was_scored():
    server = transport(generate=(2,))
    with Client(transport=server, prefix_cache=1 << 20) as client:
        client.score([TEXTS[0]])
        (result,) = client.generate([TEXTS[1]], max_new_tokens=2)
        assert result.cached_prompt_tokens == 2 * BLOCK
        # Rows alone don't tell a text's scores.
        (score,) = client.score([[*TEXTS[2], *SHARED[:9]]])
        assert score.cached_tokens == 2 * BLOCK
        client.generate([SHARED[::-1]], max_new_tokens=1)
        (score,) = client.score([SHARED[::-1]])
        check([score], [SHARED[::-1]], 0)
        assert score.cached_tokens == 0


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_schedule_gives_the_same_scores(data):
    draw = data.draw
    shared = st.integers(0, 2 * BLOCK + 1).map(lambda n: SHARED[:n])
    tail = st.lists(st.integers(4, 9), min_size=1, max_size=BLOCK)
    text = st.builds(lambda a, b: a + b, shared, tail)
    room = draw(st.integers(1, 8)) * BLOCK * ROW
    with Client(transport=transport(**BUCKETS), prefix_cache=room) as client:
        for _ in range(3):
            texts = draw(st.lists(text, max_size=4))
            top = draw(st.sampled_from([0, 2]))
            check(client.score(texts, top_logprobs=top), texts, top)


def test_a_folder_keeps_scores_for_the_next_process(tmp_path):
    for cached in (0, 2 * BLOCK):
        with (
            PrefixCache(folder=tmp_path / "rows") as prefixes,
            Client(transport=transport(), prefix_cache=prefixes) as client,
        ):
            results = client.score([SHARED], top_logprobs=2)
        check(results, [SHARED], 2)
        assert results[0].cached_tokens == cached


def test_a_newer_version_scores_the_whole_text_again():
    server = transport()
    with Client(transport=server, prefix_cache=1 << 20) as client:
        client.score([SHARED])
        newer = transport(checkpoint_digest="b" * 64)
        server.versions[2], server.manifest = server.model, newer.manifest
        for cached in (0, 2 * BLOCK):
            results = client.score([SHARED])
            check(results, [SHARED], 0)
            assert results[0].cached_tokens == cached
        server.manifest = replace(server.manifest, checkpoint_digest="")
        server.versions = {3: server.model}
        results = client.score([SHARED])
        check(results, [SHARED], 0)
        assert results[0].cached_tokens == 0
