"""OPT's tokenizer: GPT-2's byte-level BPE with ``</s>`` before every prompt.

Needs the ``tokenizers`` package and nothing else, so that a client can import it.

    tokenizer = Tokenizer.from_directory("opt-125m")
    ids = tokenizer.encode("Good morrow")       # [2, …]
    detokenizer = Detokenizer(tokenizer)
    for token in generated: print(detokenizer.add([token]), end="")
    print(detokenizer.finish())
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

END, PAD = "</s>", "<pad>"
MAX_FILE = 64 << 20
"""Bytes of one tokenizer file that are read; OPT's largest has 2 million."""


class TokenizerError(ValueError):
    """The tokenizer's files are missing, broken or not of this kind; or the text is."""


class Tokenizer:
    """Text to token ids and back. Safe to share between threads.

    Made by :meth:`from_directory` or :meth:`from_json`.
    """

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        core.no_padding()
        core.no_truncation()
        if not isinstance(core.decoder, decoders.ByteLevel):
            raise TokenizerError(
                "a byte-level BPE tokenizer was expected, this one has the decoder "
                f"{type(core.decoder).__name__}"
            )
        self._core = core
        self._prefix = _probe(core)
        self.eos_token_id = self._required(END)
        self.bos_token_id = self._prefix[0] if self._prefix else self.eos_token_id
        self.pad_token_id = self._required(PAD)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From ``tokenizer.json``, else from ``vocab.json`` and ``merges.txt``.

        ``</s>`` is put first unless ``tokenizer_config.json`` says
        ``"add_bos_token": false`` (Galactica's does not want it).
        """
        directory = Path(path)
        if (directory / "tokenizer.json").is_file():
            core = _core_from_json(_read(directory / "tokenizer.json"))
        else:
            core = _core_from_vocabulary(directory)
        settings = directory / "tokenizer_config.json"
        add_bos = _parse(settings).get("add_bos_token") if settings.is_file() else None
        if add_bos is False:
            core.post_processor = processors.ByteLevel(trim_offsets=False)
        elif not _probe(core):
            _put_end_first(core)
        return cls(core)

    @classmethod
    def from_json(cls, data: bytes | str) -> Tokenizer:
        """From the content of a ``tokenizer.json``, as :meth:`to_json` gives it.

        What is put before a prompt is what the JSON's post-processor says.
        """
        text = data if isinstance(data, str) else _utf8(data, "the tokenizer's JSON")
        return cls(_core_from_json(text))

    def to_json(self) -> str:
        """Everything about it as one JSON text."""
        return self._core.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of ids that it can produce."""
        return self._core.get_vocab_size(with_added_tokens=True)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that :meth:`decode` skips on request."""
        return self._special

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, ``</s>`` first."""
        _check_text(text)
        return self._core.encode(text, add_special_tokens=add_special_tokens).ids

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
        for text in texts:
            _check_text(text)
        rows = self._core.encode_batch(
            list(texts), add_special_tokens=add_special_tokens
        )
        longest = max((len(row.ids) for row in rows), default=0)
        ids = np.full((len(rows), longest), self.pad_token_id, np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            start = longest - len(row.ids) if padding_side == "left" else 0
            place = slice(start, start + len(row.ids))
            ids[i, place] = row.ids
            mask[i, place] = 1
        return ids, mask

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD.

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
        token_id = self._core.token_to_id(token)
        if token_id is None:
            raise TokenizerError(f"the tokenizer's vocabulary has no {token}")
        return token_id

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._core.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        alphabet = _byte_alphabet()
        table = {
            i: bytes(alphabet[c] for c in token)
            if all(c in alphabet for c in token)
            else token.encode()
            for token, i in self._core.get_vocab(with_added_tokens=False).items()
        }
        for i, token in self._core.get_added_tokens_decoder().items():
            table[i] = token.content.encode()
        return table


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


def _probe(core: tokenizers.Tokenizer) -> list[int]:
    """What is put before a prompt. Shows up a tokenizer that cannot encode: a wrong
    post-processor is noticed by its first use only, and then as a Rust panic."""
    try:
        prefix = core.encode("").ids
        ids = [*core.get_vocab(with_added_tokens=True).values(), *prefix]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        raise TokenizerError(f"the tokenizer cannot encode: {_brief(error)}") from None
    if max(ids, default=0) >= 2**31:
        raise TokenizerError("the tokenizer has ids beyond 31 bits")
    return prefix


def _core_from_json(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(
            f"the tokenizer's JSON is not usable: {_brief(error)}"
        ) from None


def _core_from_vocabulary(directory: Path) -> tokenizers.Tokenizer:
    paths = directory / "vocab.json", directory / "merges.txt"
    if not all(path.is_file() for path in paths):
        raise TokenizerError(
            f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json with "
            "merges.txt"
        )
    vocabulary = _parse(paths[0])
    if not all(type(i) is int and 0 <= i < 2**31 for i in vocabulary.values()):
        raise TokenizerError(f"{paths[0]} should map tokens to ids")
    merges = [_merge(paths[1], line) for line in _merge_lines(_read(paths[1]))]
    try:
        core = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(
            f"{paths[1]} does not fit {paths[0].name}: {_brief(error)}"
        ) from None
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    for token in (END, PAD):
        if token not in vocabulary:
            raise TokenizerError(f"{paths[0]} has no {token}")
    core.add_special_tokens([AddedToken(t, normalized=False) for t in (END, PAD)])
    return core


def _merge_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [s for s in lines if s.strip() and not s.startswith("#version")]


def _merge(path: Path, line: str) -> tuple[str, str]:
    left, _, right = line.rstrip("\r").partition(" ")
    if not left or not right or " " in right:
        raise TokenizerError(f"{path}: {line[:40]!r} is not a pair of tokens")
    return left, right


def _put_end_first(core: tokenizers.Tokenizer) -> None:
    end = core.token_to_id(END)
    if end is None:
        raise TokenizerError(f"the tokenizer's vocabulary has no {END}")
    core.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, end)]
    )


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_FILE:
        raise TokenizerError(f"{path} has more than {MAX_FILE} bytes, no tokenizer's")
    return _utf8(path.read_bytes(), str(path))


def _utf8(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{source} is not UTF-8: {error.reason}") from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not valid JSON: {_brief(error)}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} should hold a JSON object")
    return value


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a prompt's text is a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has half of a surrogate pair at position {error.start}, which "
            "no UTF-8 text can have"
        ) from None


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: those that print are themselves,
    the others follow from U+0100 on (``bytes_to_unicode`` in OpenAI's ``encoder.py``).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}
