"""The source model's own answers: the checkpoint, in float32, a layer at a time."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...models.config import OPTConfig
from ...models.files import open_weights
from ...models.weights import check_weights, params_from_weights, weight_shapes
from ..contract import tokens_per_call
from .plan import MOST_CACHE, Plan, Question, Row
from .rounding import Rounding, exact
from .subject import PIECE, Answer

_TOGETHER = 256
"""Sequences up to this length are read in batches, longer ones alone."""
_SHARE = 50
"""Keys and values of a batch take as much as one sequence's may, or this part of the
weights: all weights are read again for each batch."""


class SourceModel:
    """A checkpoint that answers a plan's questions.

    ``framework`` is the one that computes: if both are installed not the export's own,
    so that a mistake of one library, or of our code for it, has no twin here. It
    computes in float32, with its weights as they are or, by ``rounding``, as they are
    after being stored in another type.
    """

    def __init__(self, checkpoint: str | Path, *, other_than: str) -> None:
        self.rounding: Rounding = exact
        self.config = OPTConfig.from_pretrained(checkpoint)
        self.weights = open_weights(checkpoint)
        check_weights(
            weight_shapes(self.config),
            {name: self.weights.shape(name) for name in self.weights},
            source=checkpoint,
        )
        both = importlib.util.find_spec("jax") is not None
        self.framework = "jax" if other_than == "tf" and both else "tf"
        name = {"jax": "flax_opt", "tf": "tf_opt"}[self.framework]
        self._math: Any = importlib.import_module(f"...models.{name}", __package__)
        self._head: Any = None

    def answer(self, plan: Plan, observed: list[Answer | None]) -> list[Answer | None]:
        """What each question should have got; None where nothing was observed.

        A generation is judged token by token, each given the export's own tokens before
        it: ``regret`` is how far its logit is below the best one's.
        """
        self._head = None
        answers: list[Any] = [got and [{} for _ in got] for got in observed]
        wanted: dict[bytes, list[tuple[int, int]]] = {}  # by sequence: question and row
        for i, (question, got) in enumerate(zip(plan.questions, observed, strict=True)):
            for b, row in enumerate(question.rows if got else ()):
                made = got[b].get("tokens") if got else None
                tokens = _sequence(plan, row, made)
                wanted.setdefault(tokens.tobytes(), []).append((i, b))
        for group in self._groups([np.frombuffer(key, np.int32) for key in wanted]):
            hidden, layers = self.run(*_padded(group))
            for at, tokens in enumerate(group):
                read = _Read(tokens, hidden[at], [(k[at], v[at]) for k, v in layers])
                for i, b in wanted[tokens.tobytes()]:
                    question = plan.questions[i]
                    answers[i][b] = self._expected(question, question.rows[b], read)
            del hidden, layers, read  # before the next group's
        return answers

    def _groups(self, sequences: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Sequences to read together: short ones, as many as the memory is good for."""
        config = self.config
        token = 2 * 4 * config.num_hidden_layers * config.hidden_size
        most = max(MOST_CACHE, self.weights.nbytes // _SHARE) // token
        group: list[np.ndarray] = []
        for sequence in sorted(sequences, key=len):
            size = (len(group) + 1) * len(sequence)
            if group and (size > most or len(sequence) > _TOGETHER):
                yield group
                group = []
            group.append(sequence)
        if group:
            yield group

    def _expected(
        self, question: Question, row: Row, read: _Read
    ) -> dict[str, np.ndarray]:
        name = question.signature
        if name in ("describe", "tokenizer"):
            return {}
        tokens, hidden = read.tokens, read.hidden
        begin, end = row.past, row.past + row.new
        if name == "embed":
            return {"last_hidden_state": hidden[begin:end]}
        if name == "serving_default":
            return {"logits": self.logits(hidden[begin:end])}
        if name == "score":
            scores = self.logits(hidden[begin : end - 1])
            return {"logprobs": chosen_logprobs(scores, tokens[begin + 1 : end])}
        if tokens_per_call(name):
            made = tokens[end:]
            logits = self.logits(hidden[end - 1 : len(tokens) - 1])
            chosen = np.take_along_axis(logits, made[:, None], 1)[:, 0]
            return {
                "regret": logits.max(-1) - chosen,
                "logits": logits,
                "logprobs": chosen_logprobs(logits, made),
                "new_cache": read.cache(begin, len(tokens) - 1),
            }
        return {
            "logits": self.logits(hidden[end - 1]),
            "new_cache": read.cache(begin, end),
        }

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """``[..., W]`` to ``[..., V]`` by the model's head."""
        if self._head is None:
            tied = self.config.tie_word_embeddings
            name = "decoder.embed_tokens.weight" if tied else "lm_head.weight"
            self._head = self._load(name)
        params = {"embed_tokens": self._head, "lm_head": {"weight": self._head}}
        flat = self._array(hidden.reshape(-1, hidden.shape[-1]))
        made = np.asarray(self._math.lm_logits(self.config, params, flat))
        return made.reshape(*hidden.shape[:-1], made.shape[-1])

    def run(
        self, tokens: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Hidden states [B,T,W] and, for each layer, keys and values [B,H,T,D]."""
        hidden, cache = [], None
        for begin in range(0, tokens.shape[1], PIECE):
            end = begin + PIECE
            piece, cache = self._run(tokens[:, begin:end], mask[:, :end], cache)
            hidden.append(piece)
        assert cache is not None
        return np.concatenate(hidden, 1), cache

    def _run(self, tokens: np.ndarray, mask: np.ndarray, past: list | None):
        names = params_from_weights(self.config, {name: name for name in self.weights})
        params = {
            key: value
            if key in ("layers", "embed_tokens")
            else _loaded(value, self._load)
            for key, value in names.items()
            if key != "lm_head"
        }
        params["layers"] = _Layers(names["layers"], self._load)

        def store(past, k, v):
            k, v = np.asarray(k), np.asarray(v)
            if past is not None:
                k, v = (np.concatenate(x, 2) for x in zip(past, (k, v), strict=True))
            return self._array(k), self._array(v), (k, v)

        decoded = self._math.base_model(
            self.config,
            params,
            inputs_embeds=self._array(self._embedded(tokens)),
            mask=self._array(mask),
            past=past,
            store=store,
        )
        return np.asarray(decoded.last_hidden_state), decoded.cache

    def _load(self, name: str) -> Any:
        return self._array(self.rounding(name, self.weights[name]))

    def _embedded(self, tokens: np.ndarray) -> np.ndarray:
        name = "decoder.embed_tokens.weight"
        rows = self.rounding(name, self.weights[name][tokens.reshape(-1)])
        return rows.reshape(*tokens.shape, -1)

    def _array(self, value: np.ndarray) -> Any:
        if self.framework == "jax":
            import jax.numpy as jnp

            return jnp.asarray(value)
        import tensorflow as tf

        return tf.constant(value)


class _Layers:
    """The layers' parameters, each loaded when its turn comes and dropped after it."""

    def __init__(self, names: list[dict], load: Callable[[str], Any]) -> None:
        self._names, self._load = names, load

    def __iter__(self) -> Iterator[dict]:
        for layer in self._names:
            yield _loaded(layer, self._load)

    def __len__(self) -> int:
        return len(self._names)


def _loaded(names: Any, load: Callable[[str], Any]) -> Any:
    if isinstance(names, dict):
        return {key: _loaded(value, load) for key, value in names.items()}
    return None if names is None else load(names)


@dataclass(frozen=True)
class _Read:
    """What the model made of one sequence: hidden states [T,W] and, for each layer,
    keys and values [H,T,D], with padding behind."""

    tokens: np.ndarray
    hidden: np.ndarray
    layers: list[tuple[np.ndarray, np.ndarray]]

    def cache(self, begin: int, end: int) -> np.ndarray:
        """The cache's rows [end - begin,L,2,H,D]."""
        rows = [np.stack([k[:, begin:end], v[:, begin:end]]) for k, v in self.layers]
        return np.stack(rows).transpose(3, 0, 1, 2, 4)


def _sequence(plan: Plan, row: Row, made: np.ndarray | None) -> np.ndarray:
    """The tokens that answer a row: its whole stream, or with what it generated."""
    stream = plan.streams[row.stream]
    if made is None:
        return stream[: plan.length(row.stream)]
    return np.concatenate([stream[: row.past + row.new], made])


def _padded(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask, both int32 [B,T]."""
    shape = (len(sequences), max(1, *map(len, sequences)))
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for b, sequence in enumerate(sequences):
        tokens[b, : len(sequence)], mask[b, : len(sequence)] = sequence, 1
    return tokens, mask


_BLOCK = 64  # tokens


def chosen_logprobs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities ``[T]`` of tokens ``[T]`` under logits ``[T,V]``."""
    chosen = np.take_along_axis(logits, tokens[:, None], -1)[:, 0]
    totals = []
    for at in range(0, len(logits), _BLOCK):  # doubles of all of them take gigabytes
        block = logits[at : at + _BLOCK]
        top = block.max(-1, keepdims=True)
        sums = np.exp(block - top, dtype=np.float64).sum(-1)
        totals.append(np.log(sums) + top[:, 0])
    logprobs = chosen - np.concatenate([*totals, np.empty(0)])
    return logprobs.astype(np.float32)
