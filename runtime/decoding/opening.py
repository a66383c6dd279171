"""Connecting: learn what is served, and fetch the tokenizer that travels with it."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np

from ...models.tokenizer import Tokenizer, TokenizerError
from ..errors import DeadlineExceeded, MalformedReply, VersionGone
from ..transports.base import Call
from .engine import Engine
from .expected_reply import EXPECTED_TOKENIZER, ExpectedReply
from .model_versions import ModelVersions, ask_for_description
from .prefix_cache import PrefixCache
from .served_model import ServedModel
from .session_pool import SessionPool
from .task import CallRequest, Task, with_deadline

_PROBE_SECONDS = 5.0
_TRIES = 3  # a model that changes again and again while one connects is at fault


def open_engine(
    tokenizer: Tokenizer | None,
    max_rows: int | None,
    deadline: float | None,
    prefixes: PrefixCache | None = None,
    sessions: SessionPool | None = None,
) -> Task[Engine]:
    """Learn what is served and fetch its tokenizer, where it travels along.

    Starts anew where the version is replaced meanwhile.
    """
    for _ in range(_TRIES - 1):
        with suppress(VersionGone):
            return (yield from _open(tokenizer, max_rows, deadline, prefixes, sessions))
    return (yield from _open(tokenizer, max_rows, deadline, prefixes, sessions))


def _open(
    tokenizer: Tokenizer | None,
    max_rows: int | None,
    deadline: float | None,
    prefixes: PrefixCache | None,
    sessions: SessionPool | None,
) -> Task[Engine]:
    model = yield from with_deadline(ask_for_description(), deadline)
    if model.manifest.compiler == "xla":
        yield from _probe(model, deadline)
    if tokenizer is None and "tokenizer" in model.manifest.signatures:
        tokenizer = yield from _fetch_tokenizer(model, deadline)
    versions = ModelVersions(model, prefixes=prefixes, sessions=sessions)
    return Engine(versions, tokenizer, max_rows)


def _fetch_tokenizer(model: ServedModel, deadline: float | None) -> Task[Tokenizer]:
    row = np.zeros(1, np.int32)
    version = model.version or None
    expected = EXPECTED_TOKENIZER
    call = Call("tokenizer", {"row": row}, ("tokenizer",), version, expected=expected)
    reply = yield CallRequest(call, deadline)
    try:
        return Tokenizer.from_json(EXPECTED_TOKENIZER.read(reply.outputs))
    except TokenizerError as error:
        raise MalformedReply(f"the model's tokenizer is unusable: {error}") from None


def _probe(model: ServedModel, deadline: float | None) -> Task[None]:
    """Feed one token: a server with XLA switched off loads the model and runs nothing.

    A first call that has to be compiled may take longer than one wants to wait here.
    """
    rows = model.batch_size(1)
    ids = model.padding(rows, model.prompt_size(1))
    inputs = {"input_ids": ids, "input_length": np.ones(rows, np.int32)}
    patience = time.monotonic() + _PROBE_SECONDS
    soon = patience if deadline is None else min(deadline, patience)
    version = model.version or None
    expected = ExpectedReply(model, "prefill", (), rows, (1,), ids.shape[1])
    call = Call("prefill", inputs, (), version, expected=expected)
    with suppress(DeadlineExceeded):
        yield CallRequest(call, soon)
