"""OPT's tokenizer: GPT-2's byte-level BPE with ``</s>`` before every prompt.

    tokenizer = Tokenizer.from_directory("opt-125m")
    ids = tokenizer.encode("Good morrow")       # [2, …]
    detokenizer = Detokenizer(tokenizer)
    for token in generated: print(detokenizer.add([token]), end="")
    print(detokenizer.finish())

The ``tokenizers`` package does the work; here are the files that OPT's checkpoints
have, the bytes of a token, and errors that say what is wrong with a file.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from .regular_files import read_regular_file

END, PAD = "</s>", "<pad>"
MAX_FILE = 64 << 20
"""Bytes of one tokenizer file that are read; OPT's largest has 2 million."""
MAX_ID = 2**31
_LONG = 4096  # characters from which on a text goes in a batch of one: the package
# then lets other threads run meanwhile, which may be seconds


class TokenizerError(ValueError):
    """The tokenizer's files are missing, broken or not of this kind; or the text is."""


class Tokenizer:
    """Text to token ids and back. Safe to share between threads.

    Made by :meth:`from_directory` or :meth:`from_json`.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        """From the parsed content of a ``tokenizer.json``."""
        self._document = document | {"truncation": None, "padding": None}
        self._core = _load(self._document)
        self._vocabulary = self._core.get_vocab(with_added_tokens=True)
        self._added = self._core.get_added_tokens_decoder()
        self._special = frozenset(i for i, t in self._added.items() if t.special)
        self.eos_token_id = self._required(END)
        prefix = self.prefix
        if max([*self._vocabulary.values(), *prefix]) >= MAX_ID:
            raise TokenizerError("the tokenizer has ids beyond 31 bits")
        self.bos_token_id = prefix[0] if prefix else self.eos_token_id
        self.pad_token_id = self._required(PAD)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From ``tokenizer.json``, else from ``vocab.json`` and ``merges.txt``.

        ``</s>`` is put first unless ``tokenizer_config.json`` says
        ``"add_bos_token": false`` (Galactica's does not want it).
        """
        directory = Path(path)
        if (directory / "tokenizer.json").is_file():
            document = _parse(directory / "tokenizer.json")
        else:
            document = _document_from_vocabulary(directory)
        settings = directory / "tokenizer_config.json"
        add_bos = _parse(settings).get("add_bos_token") if settings.is_file() else None
        if add_bos is False:
            return cls(document | {"post_processor": None})
        tokenizer = cls(document)
        if tokenizer.prefix:
            return tokenizer
        template = _end_first(tokenizer.eos_token_id)
        return cls(document | {"post_processor": template})

    @classmethod
    def from_json(cls, data: bytes | str) -> Tokenizer:
        """From the content of a ``tokenizer.json``, as :meth:`to_json` gives it.

        What is put before a prompt is what the JSON's post-processor says.
        """
        source = "the tokenizer's JSON"
        if len(data) > MAX_FILE:
            raise TokenizerError(f"{source} has more than {MAX_FILE} bytes")
        text = data if isinstance(data, str) else _utf8(data, source)
        return cls(_parse_text(text, source))

    def to_json(self) -> str:
        """Everything about it as one JSON text."""
        return json.dumps(self._document, ensure_ascii=False, separators=(",", ":"))

    @property
    def vocab_size(self) -> int:
        """Number of ids that it can produce."""
        return len(self._vocabulary)

    @property
    def prefix(self) -> list[int]:
        """Ids that are put before a text."""
        return self._core.encode("").ids

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that :meth:`decode` skips on request."""
        return self._special

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, ``</s>`` first."""
        _check_text(text)
        with _refusing("the tokenizer can't encode this text"):
            if len(text) < _LONG:
                encoding = self._core.encode(
                    text, add_special_tokens=add_special_tokens
                )
            else:
                (encoding,) = self._core.encode_batch(
                    [text], add_special_tokens=add_special_tokens
                )
            return encoding.ids

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        padding_side: Literal["left", "right"] = "left",
        add_special_tokens: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Padded ids and their attention mask, both [rows, longest] int32."""
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is left or right, not {padding_side!r}")
        rows = [self.encode(t, add_special_tokens=add_special_tokens) for t in texts]
        longest = max(map(len, rows), default=0)
        ids = np.full((len(rows), longest), self.pad_token_id, np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            start = longest - len(row) if padding_side == "left" else 0
            place = slice(start, start + len(row))
            ids[i, place] = row
            mask[i, place] = 1
        return ids, mask

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD.

        Ids outside the vocabulary (the model's table is larger) have no text.
        """
        data = b"".join(self.token_bytes(i, skip_special_tokens) for i in ids)
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """What one token stands for; a character's bytes may span several tokens."""
        token_id = int(token_id)
        if skip_special_tokens and token_id in self._special:
            return b""
        return self._bytes.get(token_id, b"")

    def _required(self, token: str) -> int:
        token_id = self._vocabulary.get(token)
        if token_id is None:
            raise TokenizerError(f"the tokenizer's vocabulary has no {token}")
        return token_id

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        alphabet = {c: byte for byte, c in enumerate(byte_alphabet())}
        table = {
            i: bytes(alphabet[c] for c in token)
            if all(c in alphabet for c in token)
            else token.encode()
            for token, i in self._core.get_vocab(with_added_tokens=False).items()
        }
        return table | {i: t.content.encode() for i, t in self._added.items()}


class Detokenizer:
    """Turns tokens into text as they come, in constant time for each token.

    Text once given never changes, and a character whose bytes span several tokens is
    given when it is whole. All pieces joined, with :meth:`finish`'s at the end, are
    ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, ids: Iterable[int]) -> str:
        """The text that became certain with these tokens; possibly empty."""
        return self._decoder.decode(
            b"".join(self._tokenizer.token_bytes(i, self._skip) for i in ids)
        )

    def finish(self) -> str:
        """The rest: U+FFFD for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)


def _load(document: dict[str, Any]) -> tokenizers.Tokenizer:
    with _refusing("the tokenizer is not usable"):
        core = tokenizers.Tokenizer.from_str(json.dumps(document))
        core.encode("")  # a wrong post-processor is noticed by its first use only
    decoder = document.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise TokenizerError("the tokenizer's decoder should be of the type ByteLevel")
    return core


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What the library raises as a :class:`TokenizerError`.

    It raises plain Exceptions for files that it can't use; where its Rust code panics
    it is pyo3's PanicException, which is no Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what}: {_brief(error)}") from None


def byte_alphabet() -> list[str]:
    """GPT-2's printable characters for the 256 bytes: printable bytes are themselves,
    the others follow from U+0100 on (``bytes_to_unicode`` in OpenAI's ``encoder.py``).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def _document_from_vocabulary(directory: Path) -> dict[str, Any]:
    """The ``tokenizer.json`` that OPT's two files amount to."""
    paths = directory / "vocab.json", directory / "merges.txt"
    if not all(path.is_file() for path in paths):
        raise TokenizerError(
            f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json with "
            "merges.txt"
        )
    vocabulary = _parse(paths[0])
    for token in (END, PAD):
        if token not in vocabulary:
            raise TokenizerError(f"{paths[0]} has no {token}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    merges = [_merge(paths[1], line) for line in _merge_lines(_read(paths[1]))]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocabulary[token], "content": token, **plain, "special": True}
            for token in (PAD, END)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _merge_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [s for s in lines if s.strip() and not s.startswith("#version")]


def _merge(path: Path, line: str) -> list[str]:
    left, _, right = line.rstrip("\r").partition(" ")
    if not left or not right or " " in right:
        raise TokenizerError(f"{path}: {line[:40]!r} is not a pair of tokens")
    return [left, right]


def _end_first(end: int) -> dict[str, Any]:
    """A post-processor that puts ``</s>`` before a text."""
    special, first, second = (
        {"SpecialToken": {"id": END, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    )
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
    }


def _read(path: Path) -> str:
    try:
        data = read_regular_file(path, limit=MAX_FILE)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    return _utf8(data, str(path))


def _utf8(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{source} is not UTF-8: {error.reason}") from None


def _parse(path: Path) -> dict[str, Any]:
    return _parse_text(_read(path), str(path))


def _parse_text(text: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{source} is not valid JSON: {_brief(error)}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{source} should hold a JSON object")
    return value


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a prompt's text is a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has half of a surrogate pair at position {error.start}, which "
            "UTF-8 text can't have"
        ) from None


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
