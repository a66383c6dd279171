"""Stop strings against a search in the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from optserve.runtime.decoding.stop_strings import StopText


class Spelled:
    """Text of tokens: each is a piece of up to three characters."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, ids) -> str:
        return "".join(self.pieces[i] for i in ids)

    def finish(self) -> str:
        return "~"


@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(pieces, stops):
    text = StopText(Spelled(pieces), stops)
    shown = ""
    read = ""
    for i in range(len(pieces)):
        shown += text.add(i)
        read += pieces[i]
        places = [read.find(stop) for stop in stops if stop in read]
        if places:
            assert text.matched is not None and shown == read[: min(places)]
            assert text.add(0) == text.finish() == ""
            return
        assert text.matched is None and read.startswith(shown)
        held = read[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert shown + text.finish() == read + "~"


def test_without_a_tokenizer_there_is_no_text():
    text = StopText(None, [])
    assert text.add(5) == text.finish() == ""
