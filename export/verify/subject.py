"""An export under question: loaded from its folder and called by its signatures."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.contract import Manifest, signature, tokens_per_call
from ..subprocesses import release_memory
from .cache import unpack
from .plan import PIECE, Plan, Question, Row, fit

_SAMPLED = 4
"""Tokens that are enough to tell whether a signature samples as it should, or goes on
from a cache of some length."""
_AT_ONCE = 2
"""Questions: getting a graph ready, which takes longer than most answers, keeps one
processor busy."""

Answer = list[dict[str, np.ndarray]]
"""What a question's rows got: by output name, the real part of each row."""


class ExportedModel:
    """A SavedModel of the contract.

    ``problems`` collects what is wrong beyond numbers: missing signatures, wrong
    shapes, a manifest that is not the file's.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from ...runtime.server.servable import Servable
        from ...runtime.server.settings import SessionOptions

        # A server's way to load is the one to try, and takes less memory.
        self._loaded = Servable(str(folder), SessionOptions(), exported=True)
        release_memory()
        self._manifest = manifest
        self._prefixes: dict[int, np.ndarray] = {}
        self._keeping = threading.Lock()
        self.problems: list[str] = []

    def observe(self, plan: Plan) -> list[Answer | None]:
        """Ask every question of the plan; None for one without an answer."""
        for name in self._manifest.signatures:
            if name not in self._loaded.signatures:
                self.problems.append(f"signature {name} is in the manifest alone")
        questions = _in_turn(plan.questions)
        first = [q for q in questions if q.slots is None]
        then = [q for q in questions if q.slots is not None]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda q: self._ask(plan, q), first))
            self._cache_streams(plan)
            found += pool.map(lambda q: self._ask(plan, q), then)
            by_question = dict(zip(first + then, found, strict=True))
            answers = [by_question[q] for q in plan.questions]
            generations = _first_and_last_generations(plan, answers)
            list(pool.map(lambda asked: self._try_sampling(plan, *asked), generations))
        self.problems.sort()
        return answers

    def close(self) -> None:
        """Let go of the weights; nothing may be asked any more.

        With oneDNN the memory stays TensorFlow's, for its next tensors.
        """
        self._loaded.close()
        release_memory()

    def _ask(self, plan: Plan, question: Question) -> Answer | None:
        name = question.signature
        if name not in self._loaded.signatures:
            return None
        try:
            if name in ("describe", "tokenizer"):
                return self._strings(question)
            outputs = self._call(name, self._inputs(plan, question))
            self._check_shapes(question, outputs)
            if name == "prefill":
                self._keep_prefix(question, outputs["new_cache"])
            return self._rows(question, outputs)
        except Exception as error:  # whatever a graph raises is this question's answer
            self.problems.append(f"{name} {question}: {brief(error)}")
            return None

    def _call(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        signature = self._loaded.signatures[name]
        signature.check_dtypes(inputs)
        outputs = list(signature.outputs)
        found = self._loaded.run(signature, inputs, outputs)
        release_memory()  # what a graph's first call leaves behind
        return dict(zip(outputs, found, strict=True))

    def _inputs(self, plan: Plan, question: Question) -> dict[str, np.ndarray]:
        rows, S = question.rows, question.size
        ids = np.full((len(rows), S), plan.pad_token_id, np.int32)
        mask = np.zeros((len(rows), S), np.int32)
        for b, row in enumerate(rows):
            at = slice(S - row.new, S) if question.left else slice(0, row.new)
            ids[b, at], mask[b, at] = plan.tokens(row), 1
        if question.signature == "serving_default":
            return {"input_ids": ids, "attention_mask": mask}
        inputs = {"input_ids": ids, "input_length": mask.sum(1, dtype=np.int32)}
        if question.slots is not None:
            inputs.update(self._cache(question))
        if made := tokens_per_call(question.signature):
            inputs.update(_greedy(_limits(rows, made)))
        return inputs

    def _cache(self, question: Question) -> dict[str, np.ndarray]:
        """The rows' prefixes as this export made them; noise where nobody may look."""
        slots = question.slots or 0
        rows = question.rows
        if len(rows) == 1 and rows[0].past == slots:
            cache = self._prefixes[rows[0].stream][None, :slots]
            return {"cache": cache, "cache_length": np.array([slots], np.int32)}
        shape = (len(rows), slots, *self._manifest.cache_layout.row_shape)
        cache = np.full(shape, 1e4, np.float32)
        for b, row in enumerate(rows):
            cache[b, : row.past] = self._prefixes[row.stream][: row.past]
        past = np.array([row.past for row in rows], np.int32)
        return {"cache": cache, "cache_length": past}

    def _keep_prefix(self, question: Question, made: np.ndarray) -> None:
        """What a prompt by itself left in the cache, if there is no longer one."""
        row, *others = question.rows
        with self._keeping:
            if not others and row.new > len(self._prefixes.get(row.stream, ())):
                self._prefixes[row.stream] = made[0, : row.new]

    def _cache_streams(self, plan: Plan) -> None:
        """Cache every stream as far as any question needs it."""
        for stream, tokens in enumerate(plan.streams):
            pasts = [
                row.past
                for question in plan.questions
                for row in question.rows
                if row.stream == stream
            ]
            wanted = tokens[: max(pasts, default=0)]
            try:
                self._prefixes[stream] = self._make_prefix(plan, stream, wanted)
            except Exception as error:
                self.problems.append(f"caching {len(wanted)} tokens: {brief(error)}")
                shape = (len(wanted), *self._manifest.cache_layout.row_shape)
                self._prefixes[stream] = np.zeros(shape, np.float32)

    def _make_prefix(self, plan: Plan, stream: int, tokens: np.ndarray) -> np.ndarray:
        row_shape = self._manifest.cache_layout.row_shape
        made = self._prefixes.get(stream, np.zeros((0, *row_shape), np.float32))
        if len(made) >= len(tokens):
            return made
        cache = np.zeros((len(tokens), *row_shape), np.float32)
        cache[: len(made)] = made
        longest = max(plan.prompt_buckets, default=PIECE)
        for begin in range(len(made), len(tokens), longest):
            piece = tokens[begin : begin + longest]
            size = fit(len(piece), plan.prompt_buckets) or len(piece)
            ids = np.full((1, size), plan.pad_token_id, np.int32)
            ids[0, : len(piece)] = piece
            inputs = {
                "input_ids": ids,
                "input_length": np.array([len(piece)], np.int32),
            }
            name = "prefill"
            if begin:
                name = "decode"
                slots = fit(begin, plan.cache_buckets) or begin
                past = np.zeros((1, slots, *row_shape), np.float32)
                past[0, :begin] = cache[:begin]
                inputs["cache"] = past
                inputs["cache_length"] = np.array([begin], np.int32)
            rows = self._call(name, inputs)["new_cache"]
            cache[begin : begin + len(piece)] = rows[0, : len(piece)]
        return cache

    def _check_shapes(self, question: Question, outputs: dict[str, np.ndarray]) -> None:
        layout = self._manifest.cache_layout
        spec = signature(
            question.signature, layout, vocab_size=self._manifest.vocab_size
        )
        known: dict[Any, int] = {"B": len(question.rows), "S": question.size}
        made = tokens_per_call(question.signature) or 1
        known["S+N-1"] = question.size + made - 1
        for tensor in spec.outputs:
            if tensor.name not in outputs:
                raise ValueError(f"no output {tensor.name}")
            found = outputs[tensor.name]
            wanted = [known.get(d, d) for d in tensor.shape]
            fits = len(wanted) == found.ndim and all(
                isinstance(w, str) or w == f
                for w, f in zip(wanted, found.shape, strict=True)
            )
            if not fits or found.dtype != tensor.numpy_dtype():
                raise ValueError(
                    f"{tensor.name} is {found.dtype}{list(found.shape)}, expected "
                    f"{tensor.dtype}{wanted}"
                )

    def _rows(self, question: Question, outputs: dict[str, np.ndarray]) -> Answer:
        """Cut padding off, and bring caches to plain float32 numbers."""
        made = tokens_per_call(question.signature)
        answer: Answer = []
        for b, row in enumerate(question.rows):
            got = {name: value[b] for name, value in outputs.items()}
            fed = row.new
            if made:
                count = int(got.pop("count"))
                limit = _limits(question.rows, made)[b]
                if count != limit:  # nothing stops a row before
                    raise ValueError(f"count is {count}, expected {limit}")
                if (got["tokens"][count:] != -1).any():
                    raise ValueError(
                        f"tokens behind the end are not -1: {got['tokens']}"
                    )
                fed = row.new + count - 1
                got["tokens"] = got["tokens"][:count]
                got["logprobs"] = got["logprobs"][:count]
            elif question.signature == "score":
                got["logprobs"] = got["logprobs"][1 : row.new]
            elif question.signature in ("serving_default", "embed"):
                begin = question.size - row.new if question.left else 0
                got = {k: v[begin : begin + row.new] for k, v in got.items()}
            if "new_cache" in got:
                layout = self._manifest.cache_layout
                got["new_cache"] = unpack(got["new_cache"][:fed], layout)
            answer.append(got)
        return answer

    def _try_sampling(self, plan: Plan, question: Question, greedy: Answer) -> None:
        try:
            self._check_sampling(question, self._inputs(plan, question), greedy)
        except Exception as error:
            self.problems.append(f"{question.signature} {question}: {brief(error)}")

    def _check_sampling(
        self, question: Question, inputs: dict[str, np.ndarray], greedy: Answer
    ) -> None:
        """What holds for any model: top_k 1 is greedy, seeds repeat, limits hold."""
        B, name = len(question.rows), question.signature
        few = np.minimum(inputs["max_new_tokens"], _SAMPLED)
        narrow = {"temperature": np.ones(B, np.float32), "top_k": np.ones(B, np.int32)}
        got = self._call(name, {**inputs, **narrow, "max_new_tokens": few})
        for b, row in enumerate(greedy):
            start = {k: row[k][:_SAMPLED] for k in ("tokens", "logprobs")}
            if not _equally_likely(start, {k: v[b] for k, v in got.items()}):
                self.problems.append(f"{name} {question}: top_k 1 differs from greedy")
        warm = {**inputs, "temperature": np.full(B, 5.0, np.float32)}
        warm["max_new_tokens"] = np.maximum(few // 2, 1)
        first, second = (self._call(name, warm) for _ in range(2))
        if not np.array_equal(first["tokens"], second["tokens"]):
            self.problems.append(f"{name}: a seed does not repeat")
        if (first["count"] != warm["max_new_tokens"]).any():
            self.problems.append(
                f"{name}: made {first['count'].tolist()} tokens where "
                f"max_new_tokens is {warm['max_new_tokens'].tolist()}"
            )

    def _strings(self, question: Question) -> Answer:
        row = np.zeros(len(question.rows), np.int32)
        (texts,) = self._call(question.signature, {"row": row}).values()
        if texts.shape != row.shape or len(set(texts.tolist())) != 1:
            raise ValueError(f"{len(row)} equal strings expected, got {texts.shape}")
        content = json.loads(texts[0])
        if question.signature == "describe":
            self._check_manifest(content)
        return [{} for _ in question.rows]

    def _check_manifest(self, content: dict[str, Any]) -> None:
        """The graph's manifest is the file's, but for the digests of the files."""
        on_disk = json.loads(self._manifest.to_json())
        different = sorted(
            key
            for key in on_disk
            if key != "files" and content.get(key) != on_disk[key]
        )
        if different:
            raise ValueError(
                f"differs from the manifest file in {', '.join(different)}"
            )


def _in_turn(questions: Sequence[Question]) -> list[Question]:
    """One question of each signature, then the second of each, and so on: two at once
    would wait for the same graph."""
    rank: Counter[str] = Counter()
    places = []
    for question in questions:
        places.append(rank[question.signature])
        rank[question.signature] += 1
    order = sorted(range(len(places)), key=places.__getitem__)
    return [questions[i] for i in order]


def _first_and_last_generations(
    plan: Plan, answers: list[Answer | None]
) -> Iterator[tuple[Question, Answer]]:
    """One row and several, of each signature that generates."""
    found: dict[str, list[tuple[Question, Answer]]] = {}
    for question, answer in zip(plan.questions, answers, strict=True):
        if answer is not None and tokens_per_call(question.signature):
            found.setdefault(question.signature, []).append((question, answer))
    for asked in found.values():
        yield from asked if len(asked) == 1 else (asked[0], asked[-1])


def _limits(rows: Sequence[Row], made: int) -> np.ndarray:
    """Tokens [B] that each row generates, of the most that its signature can.

    All of them behind one token and in a batch, whose rows don't end together; a few
    behind longer prompts and caches, where the first ones tell.
    """
    if len(rows) > 1:
        return np.maximum(made >> np.arange(len(rows), dtype=np.int32), 1)
    few = rows[0].past + rows[0].new > 1
    return np.array([min(made, _SAMPLED) if few else made], np.int32)


def _greedy(limits: np.ndarray) -> dict[str, np.ndarray]:
    rows = len(limits)
    return {
        "max_new_tokens": limits,
        "history": np.full((rows, 1), -1, np.int32),
        "stop_ids": np.full((rows, 1), -1, np.int32),
        "seed": np.tile(np.array([7, 11], np.int32), (rows, 1)),
        "temperature": np.zeros(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "repetition_penalty": np.ones(rows, np.float32),
    }


def _equally_likely(
    greedy: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> bool:
    """Whether two rows have the same tokens up to a tie, if there is one.

    Of tokens with equal logits greedy takes the first; sampling may take any.
    """
    length = len(greedy["tokens"])
    different = np.flatnonzero(greedy["tokens"] != other["tokens"][:length])
    if not different.size:
        return True
    first = different[0]
    return bool(np.isclose(greedy["logprobs"][first], other["logprobs"][first], 1e-6))


def brief(error: Exception) -> str:
    """An error's text in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
