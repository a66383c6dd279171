"""The source model's own answers: the checkpoint, in float32, a layer at a time."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...models.checkpoints import Weights, open_weights
from ...models.config import OPTConfig
from ...models.layer_context import LayerContext
from ...models.quiet import import_tensorflow
from ...models.weights import check_weights, params_from_weights, weight_shapes
from ...runtime.contract import TOP_LOGPROBS, Manifest, tokens_per_call
from .answers import Answer
from .packed_sequences import PackedSequences
from .plan import Plan, Row, TestCase
from .rounding import Rounding, exact
from .tolerances import programs_alone

_MOST_TOKENS = 512
"""Given to a layer at once: attention's memory grows with it."""

_SEEN, _UNSEEN = np.float32(0), np.finfo(np.float32).min
"""Added to attention's scores."""

_HEAD_ROWS = 8192
"""Of the largest matrix, which is read and rounded in parts."""


def judges_of(case: TestCase, manifest: Manifest) -> tuple[str, ...]:
    """The frameworks that should judge a test case's answers.

    If both are installed it is not the one that computed them, so that a mistake of a
    library, or of our code for it, has no twin here. Loops that XLA compiles are JAX's
    whatever the export's framework. A JAX export's single tokens are always JAX's;
    several tokens or rows may be either's, as the processor is, and are judged by both,
    unless programs compute everything.
    """
    if importlib.util.find_spec("jax") is None:
        return ("tf",)
    if manifest.framework == "jax":
        alone = len(case.rows) == case.size == 1
        by_jax = alone or programs_alone(manifest)
        return ("tf",) if by_jax else ("tf", "jax")
    compiled_loop = manifest.compiler == "xla" and tokens_per_call(case.signature)
    return ("tf",) if compiled_loop else ("jax",)


def open_checkpoint(checkpoint: str | Path) -> tuple[OPTConfig, Weights]:
    """Its configuration, and its weights, of which none is missing or of a wrong shape.

    Raises:
        ValueError: one is.
    """
    config, weights = OPTConfig.from_pretrained(checkpoint), open_weights(checkpoint)
    shapes = {name: weights.shape(name) for name in weights}
    check_weights(weight_shapes(config), shapes, source=checkpoint)
    return config, weights


class SourceModel:
    """A checkpoint that answers a plan's test cases.

    ``framework`` is the one that computes; :func:`judges_of` says which should. It
    computes in float32, with its weights as they are or, by ``rounding``, as they are
    after being stored in another type.
    """

    def __init__(self, checkpoint: str | Path, framework: str) -> None:
        self.rounding: Rounding = exact
        self.config, self.weights = open_checkpoint(checkpoint)
        self.framework = framework
        if framework == "tf":
            import_tensorflow()
        package = {"jax": "flax", "tf": "tf"}[framework]
        self._math: Any = importlib.import_module(
            f"...models.{package}.model", __package__
        )

    def answer(self, plan: Plan, observed: list[Answer | None]) -> list[Answer | None]:
        """What each test case should have got; None where nothing was observed.

        A generation is judged token by token, each given the export's own tokens before
        it: ``regret`` is how far its logit is below the best one's.
        """
        answers: list[Any] = [got and [{} for _ in got] for got in observed]
        rows = [
            (i, b, row, _sequence(plan, row, got[b].get("tokens")))
            for i, (case, got) in enumerate(zip(plan.cases, observed, strict=True))
            if got and case.signature not in ("describe", "tokenizer")
            for b, row in enumerate(case.rows)
        ]
        if not rows:
            return answers
        packed = PackedSequences.of([tokens for *_, tokens in rows])
        hidden, layers = self.run(packed)
        asked = [
            packed.find(tokens).start
            + np.arange(*_logits_span(plan.cases[i].signature, row, len(tokens)))
            for i, _, row, tokens in rows
        ]
        # Logits of all tokens would take more memory than the model.
        places = np.unique(np.concatenate(asked))
        logits = self.logits(hidden[places])
        for (i, b, row, tokens), at_places in zip(rows, asked, strict=True):
            at = packed.find(tokens)
            read = _Read(
                tokens,
                hidden[at],
                logits[np.searchsorted(places, at_places)],
                [(k[:, at], v[:, at]) for k, v in layers],
            )
            answers[i][b] = _expected(plan.cases[i].signature, row, read)
        return answers

    def run(
        self, packed: PackedSequences
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Hidden states [T,W] and, for each layer, keys and values [H,T,D]."""
        names = params_from_weights(self.config, {name: name for name in self.weights})
        params = {
            key: _loaded(value, self._load)
            for key, value in names.items()
            if key not in ("layers", "embed_tokens", "lm_head")
        }
        params["layers"] = _Layers(names["layers"], self._load)
        decoded = self._math.decoder(
            self.config,
            params,
            self._embedded(params, packed.tokens, packed.positions),
            None,
            store=self._store,
            run=self._in_chunks(packed),
        )
        hidden = np.asarray(decoded.last_hidden_state)[0]
        return hidden, [(k[0], v[0]) for k, v in decoded.cache]

    def _in_chunks(self, packed: PackedSequences) -> Callable[..., Iterator[Any]]:
        """Layers one after the other, each on some tokens at a time.

        So attention takes little memory, and each layer's weights are read once.
        """
        starts = range(0, len(packed.tokens), _MOST_TOKENS)
        chunks = [slice(start, start + _MOST_TOKENS) for start in starts]
        biases = [
            self._array(np.where(packed.mask(chunk), _SEEN, _UNSEEN)[None, None])
            for chunk in chunks
        ]

        def run(context: LayerContext, layers: Any, x: Any, past: None):
            for params in layers:
                outputs, cache = [], None
                for chunk, bias in zip(chunks, biases, strict=True):
                    part = replace(context, bias=bias)
                    y, cache, _ = self._math.layer(part, params, x[chunk], cache)
                    outputs.append(np.asarray(y))
                x = self._array(np.concatenate(outputs))
                yield x, cache, None

        return run

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """``[T,W]`` to ``[T,V]`` by the model's head, some of its rows at a time."""
        tied = self.config.tie_word_embeddings
        name = "decoder.embed_tokens.weight" if tied else "lm_head.weight"
        logits = np.empty((len(hidden), self.config.vocab_size), np.float32)
        x = self._array(hidden)
        for begin in range(0, self.config.vocab_size, _HEAD_ROWS):
            rows = slice(begin, begin + _HEAD_ROWS)
            weight = self._array(self.rounding(name, self.weights[name][rows]))
            logits[:, rows] = self._math.linear(x, weight)
        return logits

    def _store(self, past, k, v):
        k, v = np.asarray(k), np.asarray(v)
        if past is not None:
            k, v = (np.concatenate(x, 2) for x in zip(past, (k, v), strict=True))
        return self._array(k), self._array(v), (k, v)

    def _load(self, name: str) -> Any:
        return self._array(self.rounding(name, self.weights[name]))

    def _embedded(self, params: dict, tokens: np.ndarray, positions: np.ndarray) -> Any:
        """The first layer's input [1,T,E]."""
        name = "decoder.embed_tokens.weight"
        rows = self.rounding(name, self.weights[name][tokens])
        return self._math.embed(
            self.config, params, self._array(rows[None]), self._array(positions[None])
        )

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
    """What the model computed for one sequence: hidden states [T,W], those logits [·,V]
    that its row is judged by and, for each layer, keys and values [H,T,D]."""

    tokens: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray
    layers: list[tuple[np.ndarray, np.ndarray]]

    def cache(self, begin: int, end: int) -> np.ndarray:
        """The cache's rows [end - begin,L,2,H,D]."""
        rows = [np.stack([k[:, begin:end], v[:, begin:end]]) for k, v in self.layers]
        return np.stack(rows).transpose(3, 0, 1, 2, 4)


def _logits_span(name: str, row: Row, length: int) -> tuple[int, int]:
    """From and up to which of a sequence's tokens logits make a row's answer."""
    begin, end = row.past, row.past + row.new
    if name == "embed":
        return begin, begin
    if name == "serving_default":
        return begin, end
    if name == "score":
        return begin, end - 1
    if tokens_per_call(name):
        return end - 1, length - 1
    return end - 1, end


def _expected(name: str, row: Row, read: _Read) -> dict[str, np.ndarray]:
    """One row's outputs of the signature ``name``."""
    tokens, logits = read.tokens, read.logits
    begin, end = row.past, row.past + row.new
    if name == "embed":
        hidden = read.hidden[begin:end]
        return {"last_hidden_state": hidden, "pooled": hidden.mean(0)}
    if name == "serving_default":
        return {"logits": logits}
    if name == "score":
        return {
            "logprobs": chosen_logprobs(logits, tokens[begin + 1 : end]),
            "top_logprobs": largest_logprobs(logits),
            "new_cache": read.cache(begin, end),
        }
    if tokens_per_call(name):
        generated = tokens[end:]
        chosen = np.take_along_axis(logits, generated[:, None], 1)[:, 0]
        return {
            "regret": logits.max(-1) - chosen,
            "logits": logits,
            "logprobs": chosen_logprobs(logits, generated),
            "top_logprobs": largest_logprobs(logits),
            "new_cache": read.cache(begin, len(tokens) - 1),
        }
    return {"logits": logits[0], "new_cache": read.cache(begin, end)}


def _sequence(plan: Plan, row: Row, generated: np.ndarray | None) -> np.ndarray:
    """The tokens that answer a row: those it was given, and what it generated."""
    given = plan.token_sequences[row.token_sequence][: row.past + row.new]
    return given if generated is None else np.concatenate([given, generated])


_BLOCK = 64  # tokens


def chosen_logprobs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities ``[T]`` of tokens ``[T]`` under logits ``[T,V]``."""
    chosen = np.take_along_axis(logits, tokens[:, None], -1)[:, 0]
    return (chosen - _normalizers(logits)).astype(np.float32)


def largest_logprobs(logits: np.ndarray) -> np.ndarray:
    """The largest log-probabilities ``[T,5]`` under logits ``[T,V]``, in order."""
    largest = [np.empty((0, TOP_LOGPROBS))]
    for at in range(0, len(logits), _BLOCK):
        few = np.partition(-logits[at : at + _BLOCK], TOP_LOGPROBS - 1)
        largest.append(-np.sort(few[:, :TOP_LOGPROBS]))
    logprobs = np.concatenate(largest) - _normalizers(logits)[:, None]
    return logprobs.astype(np.float32)


def _normalizers(logits: np.ndarray) -> np.ndarray:
    """Logarithms ``[T]`` of the sums of exponentials."""
    totals = []
    for at in range(0, len(logits), _BLOCK):  # doubles of all of them take gigabytes
        block = logits[at : at + _BLOCK]
        top = block.max(-1, keepdims=True)
        sums = np.exp(block - top, dtype=np.float64).sum(-1)
        totals.append(np.log(sums) + top[:, 0])
    return np.concatenate([*totals, np.empty(0)])
