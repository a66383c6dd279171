"""What both clients share: from prompts and options to work for the decode loop."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from ...models.tokenizer import Detokenizer, Tokenizer, TokenizerError
from ..contract import tokens_per_call
from ..errors import (
    DeadlineExceeded,
    InvalidRequest,
    MalformedReply,
    PromptTooLong,
    VersionGone,
)
from ..options import Options, Prompt
from ..results import Generation, Score
from ..transports.base import Call
from . import scoring
from .beam_search import beam_search
from .kv_cache import RowCache
from .loop import Ask, Work, asked, generate_rows, generate_samples
from .sequence import Row
from .served_model import Catalog, ServedModel, connect

_PROBE_SECONDS = 5.0
_TRIES = 3  # a model that changes again and again while one connects is at fault

DEFAULT_ROWS = 32
"""Rows of one call where the export names no batch sizes."""


class Core:
    """One connected model: its versions and its tokenizer."""

    def __init__(
        self, catalog: Catalog, tokenizer: Tokenizer | None, max_rows: int | None
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise InvalidRequest(f"max_rows must be 1 or more, got {max_rows}")
        self.catalog = catalog
        self.tokenizer = tokenizer
        sizes = catalog.current.manifest.batch_sizes
        limit = sizes[-1] if sizes else max_rows or DEFAULT_ROWS
        self.capacity = min(max_rows or limit, limit)

    def encode(self, prompt: Prompt, *, special: bool = True) -> list[int]:
        """Token ids of text, or checked ids as they are.

        Raises:
            InvalidRequest: no tokenizer, no tokens, an id out of range, or a text that
                can't be encoded.
        """
        if isinstance(prompt, str):
            tokenizer = self._need_tokenizer()
            try:
                return tokenizer.encode(prompt, add_special_tokens=special)
            except TokenizerError as error:
                raise InvalidRequest(str(error)) from None
        vocabulary = self.catalog.current.manifest.vocab_size
        try:
            ids = [operator.index(token) for token in prompt]
        except TypeError as error:
            raise InvalidRequest(
                "a prompt is text or a sequence of token ids, which are whole numbers, "
                f"got {type(prompt).__name__} ({error})"
            ) from None
        if not ids:
            raise InvalidRequest("a prompt of token ids needs at least one, got none")
        for token in ids:
            if not 0 <= token < vocabulary:
                raise InvalidRequest(
                    f"token ids must be 0 to {vocabulary - 1}, got {token}"
                )
        return ids

    def fitted(self, tokens: list[int], options: Options) -> list[int]:
        """The prompt within the model's positions, truncated where that is allowed."""
        limit = self.catalog.current.positions
        room = limit - options.max_new_tokens
        if len(tokens) <= room:
            return tokens
        bos = self.catalog.current.manifest.bos_token_id
        head = [bos] if tokens[0] == bos else []
        if options.truncate == "left" and room > len(head):
            return head + tokens[len(tokens) - room + len(head) :]
        raise PromptTooLong(
            f"{len(tokens)} prompt tokens and {options.max_new_tokens} new ones exceed "
            f"the model's {limit} positions: shorten the prompt, ask for fewer tokens, "
            "or have its beginning dropped (truncate='left', --truncate-left)"
        )

    def row(
        self,
        prompt: Sequence[int],
        options: Options,
        *,
        index: int = 0,
        streaming: bool = False,
        sample: int = 0,
    ) -> Row:
        """The state of one sequence, ready for the loop."""
        manifest = self.catalog.current.manifest
        if options.stop:
            self._need_tokenizer()
        stop_ids = options.stop_token_ids
        constraints = options.constraints
        row = Row(
            prompt,
            options,
            sampling=options.chosen.seeded(sample),
            stop_ids=[manifest.eos_token_id] if stop_ids is None else stop_ids,
            make_text=self._text,
            bad_words=[
                word
                for bad in (constraints.bad_words if constraints else ())
                for word in self._spellings(bad)
            ],
            index=index,
            streaming=streaming,
        )
        self._check_ids(row, options, manifest.vocab_size)
        return row

    def generate(
        self, prompts: Iterable[Prompt], options: Options
    ) -> Work[list[Generation]]:
        """Work that gives one ``Generation`` per prompt, in order."""
        options = replace(options, sampling=options.chosen.seeded())
        encoded = [self.fitted(self.encode(p), options) for p in several(prompts)]
        rows = [
            [
                self.row(ids, options, index=i, sample=sample)
                for sample in range(options.samples)
            ]
            for i, ids in enumerate(encoded)
        ]
        echoed: list[Score] = []
        if options.echo:
            deadline = rows[0][0].deadline if rows else None
            echoed = yield from scoring.score(
                encoded, self.catalog, self.capacity, deadline
            )
        if options.beams:
            results = []
            for (row,) in rows:
                results.append((yield from beam_search(row, self.catalog)))
        else:
            for siblings in rows if options.samples > 1 else ():
                yield from generate_samples(siblings, self.catalog, self.capacity)
            if options.samples == 1:
                every: Iterator[Row] = (row for (row,) in rows)
                yield from generate_rows(every, self.catalog, self.capacity)
            results = [_ranked(siblings) for siblings in rows]
        for i, scored in enumerate(echoed):
            results[i] = replace(results[i], prompt_logprobs=scored.logprobs)
        return results

    def many(
        self, prompts: Iterable[Prompt], options: Options
    ) -> tuple[Work[None], dict[int, Row]]:
        """Work that reads the prompts as it has room for them, and its rows so far."""
        options = replace(options, sampling=options.chosen.seeded())
        rows: dict[int, Row] = {}

        def source() -> Iterator[Row]:
            for i, prompt in enumerate(prompts):
                ids = self.fitted(self.encode(prompt), options)
                rows[i] = self.row(ids, options, index=i)
                yield rows[i]

        return generate_rows(source(), self.catalog, self.capacity), rows

    def stream(self, prompt: Prompt, options: Options) -> tuple[Work[None], Row]:
        """Work for one prompt whose pieces are wanted, and its row."""
        return self.resume(self.fitted(self.encode(prompt), options), options)

    def resume(
        self,
        tokens: Sequence[int],
        options: Options,
        *,
        cache: RowCache | None = None,
        version: int | None = None,
    ) -> tuple[Work[None], Row]:
        """``stream`` of tokens whose first ones are in a cache already."""
        if options.beams or options.samples > 1 or options.echo:
            raise InvalidRequest(
                "beam search, several samples and echo can't be streamed: use generate"
            )
        row = self.row(tokens, options, streaming=True)
        row.cache, row.version = cache, version
        return generate_rows(iter([row]), self.catalog, 1), row

    def score(
        self, texts: Iterable[Prompt], timeout: float | None
    ) -> Work[list[Score]]:
        """Work that gives each text's log-probabilities."""
        return scoring.score(self._whole(texts), *self._limits(timeout))

    def embed(
        self, texts: Iterable[Prompt], timeout: float | None
    ) -> Work[list[np.ndarray]]:
        """Work that gives each text's last hidden states."""
        return scoring.embed(self._whole(texts), *self._limits(timeout))

    def most_rows(self, call: Call) -> int:
        """Most rows of a call that is joined of calls like this one."""
        model = self.catalog.of(call.version)
        new = call.inputs["input_ids"].shape[1]
        if call.signature in ("score", "embed"):
            return scoring.most_rows(model, new, self.capacity)
        new += tokens_per_call(call.signature) or 0
        cached = call.inputs["cache"].shape[1] if "cache" in call.inputs else 0
        return min(self.capacity, model.rows_that_fit(new, cached))

    def padded_rows(self, call: Call, rows: int) -> int:
        """B for ``rows`` joined rows of calls like this one."""
        return self.catalog.of(call.version).padded_rows(rows)

    def _limits(self, timeout: float | None) -> tuple[Catalog, int, float | None]:
        return self.catalog, self.capacity, moment(timeout)

    def _whole(self, texts: Iterable[Prompt]) -> list[list[int]]:
        limit = self.catalog.current.manifest.max_positions
        encoded = [self.encode(text) for text in several(texts)]
        for ids in encoded:
            if len(ids) > limit:
                raise PromptTooLong(
                    f"a text of {len(ids)} tokens exceeds the model's {limit} "
                    "positions: shorten it"
                )
        return encoded

    def _text(self) -> Detokenizer | None:
        return Detokenizer(self.tokenizer) if self.tokenizer else None

    def _spellings(self, word: Prompt) -> list[list[int]]:
        """A bad word's tokens: a text is also forbidden behind a space."""
        if not isinstance(word, str):
            return [self.encode(word)]
        spelled = [self.encode(w, special=False) for w in (word, " " + word.lstrip())]
        return [ids for ids in spelled if ids]

    def _check_ids(self, row: Row, options: Options, vocabulary: int) -> None:
        constraints = options.constraints
        named = {"stop_token_ids": row.stop_ids}
        if constraints:
            named["constraints.forced"] = tuple(constraints.forced.values())
            named["constraints.logit_bias"] = tuple(constraints.logit_bias)
        for name, ids in named.items():
            if wrong := [i for i in ids if not 0 <= i < vocabulary]:
                raise InvalidRequest(
                    f"{name} must hold ids from 0 to {vocabulary - 1}, got {wrong[0]}"
                )

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                "text needs a tokenizer and this export holds none: pass "
                "tokenizer=DIRECTORY, or prompts as token ids and no stop strings"
            )
        return self.tokenizer


def open_core(
    tokenizer: Tokenizer | None, max_rows: int | None, deadline: float | None
) -> Work[Core]:
    """Learn what is served and fetch its tokenizer, where it travels along.

    A version that is replaced meanwhile is let go.
    """
    for _ in range(_TRIES - 1):
        with suppress(VersionGone):
            return (yield from _open_core(tokenizer, max_rows, deadline))
    return (yield from _open_core(tokenizer, max_rows, deadline))


def _open_core(
    tokenizer: Tokenizer | None, max_rows: int | None, deadline: float | None
) -> Work[Core]:
    catalog = yield from asked(connect(), deadline)
    model = catalog.current
    if model.manifest.compiler == "xla":
        yield from _probe(model, deadline)
    if tokenizer is None and "tokenizer" in model.manifest.signatures:
        row = np.zeros(1, np.int32)
        call = Call("tokenizer", {"row": row}, ("tokenizer",), model.version or None)
        reply = yield Ask(call, deadline)
        try:
            data = np.asarray(reply.outputs["tokenizer"], object).reshape(-1)[0]
            tokenizer = Tokenizer.from_json(data)
        except (KeyError, IndexError, TypeError, TokenizerError) as error:
            raise MalformedReply(
                f"the model's tokenizer is unusable: {error}"
            ) from None
    return Core(catalog, tokenizer, max_rows)


def _probe(model: ServedModel, deadline: float | None) -> Work[None]:
    """Feed one token: a server with XLA switched off loads the model and runs nothing.

    A first call that has to be compiled may take longer than one wants to wait here.
    """
    rows = model.batch_size(1)
    ids = np.full((rows, model.prompt_size(1)), model.manifest.pad_token_id, np.int32)
    inputs = {"input_ids": ids, "input_length": np.ones(rows, np.int32)}
    patience = time.monotonic() + _PROBE_SECONDS
    call = Call("prefill", inputs, ("logits",), model.version or None)
    with suppress(DeadlineExceeded):
        yield Ask(call, patience if deadline is None else min(deadline, patience))


def unpadded(input_ids: np.ndarray, attention_mask: np.ndarray) -> list[list[int]]:
    """Prompts of a padded batch (left, right, or both), padding taken out.

    Args:
        input_ids, attention_mask: ``[B, S]``; the mask is 1 where a token counts.
    """
    ids, mask = np.asarray(input_ids), np.asarray(attention_mask)
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise InvalidRequest(
            "input_ids and attention_mask must have one shape [B, S], got "
            f"{ids.shape} and {mask.shape}"
        )
    return [
        [int(i) for i in row[keep != 0]] for row, keep in zip(ids, mask, strict=True)
    ]


def moment(seconds: float | None) -> float | None:
    """The deadline in so many seconds; None is none."""
    return None if seconds is None else time.monotonic() + seconds


def left(deadline: float | None) -> float | None:
    """Seconds until a deadline, at least 0."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def several(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts as a list; text alone is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        raise InvalidRequest(
            "prompts must be a list of texts or of id lists, got a dict"
        )
    several = list(prompts)
    if any(isinstance(p, int | np.integer) for p in several):
        raise InvalidRequest(
            "prompts must be a list of prompts, got a list of token ids: "
            "put it into a list of its own"
        )
    return several


def _ranked(siblings: Sequence[Row]) -> Generation:
    found = sorted(
        (row.generation() for row in siblings), key=lambda g: -(g.score or 0.0)
    )
    return replace(found[0], alternatives=found[1:])
