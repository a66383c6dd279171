"""Byte-level BPE as GPT-2 and OPT have it, in plain Python.

A ``tokenizer.json`` describes a pipeline. This module runs the one that OPT's
checkpoints have, and says of any other what it has beyond that:

    added tokens ── are cut out of the text first, the longest where several begin
    GPT-2's pattern ── cuts the rest into words
    byte alphabet ── a character for each byte of a word's UTF-8
    merges ── the pair of the lowest rank is joined until no pair has a rank

Rules: ``encoder.py`` of OpenAI's gpt-2 repository; the order of equal ranks and of
added tokens as in the ``tokenizers`` package, with which the tests compare.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

MAX_ID = 2**31
_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 64  # letters; longer words rarely come twice
_NONE = -1


class OtherPipeline(ValueError):
    """A pipeline that this module does not run. The text says what is different."""


class BytePairs:
    """The pipeline of a ``tokenizer.json``. Safe to share between threads.

    Attributes:
        vocabulary: token in the byte alphabet → id.
        added: id → content of the added tokens, which stand for themselves.
        special: ids of the added tokens that are special.
        prefix: ids put before a text.

    Raises:
        OtherPipeline: it is more than byte-level BPE.
        ValueError: vocabulary and merges do not fit together.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        _expect_byte_level(document)
        model = document["model"]
        self.vocabulary = _vocabulary(model)
        self._merges = _merges(model["merges"], self.vocabulary)
        tokens = _added_tokens(document.get("added_tokens") or [], self.vocabulary)
        self.added = {token["id"]: token["content"] for token in tokens}
        self.special = frozenset(t["id"] for t in tokens if t.get("special"))
        self.prefix = _prefix(document.get("post_processor"))
        known = {*self.vocabulary.values(), *self.added}
        if not known.issuperset(self.prefix):
            raise ValueError("it puts tokens before a text that it does not have")
        self._added_ids = {content: i for i, content in self.added.items()}
        # Alternatives of a regular expression are tried in order: the longest first.
        contents = sorted(self._added_ids, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
        self._letters = [self.vocabulary.get(c, _NONE) for c in byte_alphabet()]
        self._words: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text, the prefix first unless it is not wanted."""
        ids = list(self.prefix) if add_special_tokens else []
        start = 0
        for found in self._cut.finditer(text):
            self._encode_plain(text[start : found.start()], ids)
            ids.append(self._added_ids[found.group()])
            start = found.end()
        self._encode_plain(text[start:], ids)
        return ids

    def _encode_plain(self, text: str, ids: list[int]) -> None:
        words = self._words
        for word in word_pattern().findall(text):
            found = words.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(word) <= _CACHED_LENGTH:
                    if len(words) >= _CACHED_WORDS:
                        words.clear()
                    words[word] = found
            ids += found

    def _encode_word(self, word: str) -> tuple[int, ...]:
        letters = (self._letters[byte] for byte in word.encode())
        return tuple(_merged([i for i in letters if i != _NONE], self._merges))


def _merged(
    ids: list[int], merges: Mapping[tuple[int, int], tuple[int, int]]
) -> Iterator[int]:
    """The ids after all merges, lowest rank first and leftmost among equals.

    A heap of the pairs and a list of each place's neighbours: n·log n for n bytes,
    where looking for the best pair each time would take n² on one long word.
    """
    end = len(ids)
    after = list(range(1, end + 1))
    before = list(range(-1, end - 1))
    pairs = itertools.pairwise(ids)
    heap = [(*merges[p], i) for i, p in enumerate(pairs) if p in merges]
    heapq.heapify(heap)
    while heap:
        _, made, place = heapq.heappop(heap)
        other = after[place]
        if ids[place] == _NONE or other == end:
            continue
        found = merges.get((ids[place], ids[other]))
        if found is None or found[1] != made:
            continue  # one of the two was merged with another meanwhile
        ids[place], ids[other] = made, _NONE
        follower = after[place] = after[other]
        if follower < end:
            before[follower] = place
        for left, right in ((before[place], place), (place, follower)):
            if left >= 0 and right < end:
                found = merges.get((ids[left], ids[right]))
                if found is not None:
                    heapq.heappush(heap, (*found, left))
    return (i for i in ids if i != _NONE)


@lru_cache(maxsize=1)
def word_pattern() -> re.Pattern[str]:
    r"""GPT-2's ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|…``.

    ``re`` has no ``\p``. Its ``\w`` is exactly the letters, the numbers and ``_``
    (tests try every character), so the letters are ``\w`` without the other two.
    Characters newer than Python's Unicode are neither.
    """
    # The last number of Unicode is U+1FBF9; ideographs are numeric, and letters.
    plain = map(chr, range(0x20000))
    numbers = _ranges(c for c in plain if c.isnumeric() and not c.isalpha())
    # \s of re has the four separators U+001C to U+001F too, White_Space has not.
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[^\W_{numbers}]+| ?[{numbers}]+"
        rf"| ?(?:[^{space}\w]|_)+|[{space}]+(?![^{space}])|[{space}]+"
    )


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes: those that print are themselves,
    the others follow from U+0100 on (``bytes_to_unicode`` in OpenAI's ``encoder.py``).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def _ranges(characters: Iterator[str]) -> str:
    """A sorted set of characters for use inside ``[…]``."""
    ranges: list[list[int]] = []
    for code in map(ord, characters):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)


def _expect_byte_level(document: Mapping[str, Any]) -> None:
    splitter, model = document.get("pre_tokenizer", {}), document.get("model", {})
    if document.get("normalizer") is not None:
        raise OtherPipeline("it normalizes text")
    if (
        _kind(splitter) != "ByteLevel"
        or splitter.get("add_prefix_space") is not False
        or splitter.get("use_regex", True) is not True
    ):
        raise OtherPipeline("it cuts text in another way than GPT-2's pattern")
    if _kind(document.get("decoder")) != "ByteLevel":
        raise OtherPipeline("its decoder is not ByteLevel")
    if _kind(model) != "BPE":
        raise OtherPipeline("its model is not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise OtherPipeline(f"its BPE has a {option}")
    for option in ("byte_fallback", "ignore_merges"):
        if model.get(option):
            raise OtherPipeline(f"its BPE has {option}")


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError("its model has no vocabulary and merges")
    if not all(type(i) is int and i >= 0 for i in vocabulary.values()):
        raise ValueError("the vocabulary should map tokens to ids")
    if max(vocabulary.values(), default=0) >= MAX_ID:
        raise ValueError("it has ids beyond 31 bits")
    try:
        "".join(vocabulary).encode()
    except UnicodeEncodeError:
        raise ValueError("a token has half of a surrogate pair") from None
    if model.get("unk_token") is not None and not vocabulary.keys() >= {
        *byte_alphabet()
    }:
        raise OtherPipeline("it has an unknown token and lacks some bytes")
    return vocabulary


def _merges(
    merges: list[Any], vocabulary: Mapping[str, int]
) -> dict[tuple[int, int], tuple[int, int]]:
    """Pair of ids → its rank and the id of what it becomes."""
    table: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, entry in enumerate(merges):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        try:
            left, right = pair
            table[vocabulary[left], vocabulary[right]] = rank, vocabulary[left + right]
        except (TypeError, ValueError):
            fault = f"merge {rank} is no pair of tokens: {str(entry)[:40]!r}"
            raise ValueError(fault) from None
        except KeyError as error:
            fault = f"merge {rank} needs {str(error)[:40]}, which has no id"
            raise ValueError(fault) from None
    return table


def _added_tokens(
    tokens: Any, vocabulary: Mapping[str, int]
) -> Sequence[Mapping[str, Any]]:
    if not isinstance(tokens, list):
        raise OtherPipeline("its added tokens are no list")
    following = len(vocabulary)
    seen: set[str] = set()
    for token in tokens:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or content in seen:
            raise OtherPipeline("an added token is unusual")
        if any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            raise OtherPipeline(f"the added token {content[:40]!r} is more than text")
        if token.get("normalized", False) != tokens[0].get("normalized", False):
            raise OtherPipeline("added tokens are looked for in two steps")
        if token.get("id") != vocabulary.get(content, following):
            raise OtherPipeline(f"the added token {content[:40]!r} has an unusual id")
        following = max(following, token["id"] + 1)
        seen.add(content)
    return tokens


def _prefix(processor: Any) -> list[int]:
    """Ids that the post-processor puts before a text."""
    if processor is None or _kind(processor) == "ByteLevel":
        return []  # ByteLevel moves offsets only
    if _kind(processor) != "TemplateProcessing":
        raise OtherPipeline("its post-processor is not a template")
    try:
        *before, text = processor["single"]
        if text["Sequence"]["id"] != "A":
            raise OtherPipeline("its template does not end with the text")
        special = processor["special_tokens"]
        names = [entry["SpecialToken"]["id"] for entry in before]
        ids = [i for name in names for i in special[name]["ids"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, OtherPipeline):
            raise
        raise OtherPipeline("its template has an unusual form") from None
    if not all(type(i) is int for i in ids):
        raise OtherPipeline("its template has an unusual form")
    return ids


def _kind(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None
