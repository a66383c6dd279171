"""A TFLite file under question: run by LiteRT, as on a device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...runtime.contract import Manifest
from ..errors import ExportError
from .plan import Plan, Question, Row, affordable
from .subject import Answer, brief

_NOISE = 100.0


def make_edge_plan(manifest: Manifest, *others: Manifest, max_length: int | None):
    """Questions for a file's ``decode`` and ``prefill_{S}``: one row, fixed sizes.

    Shortest and odd prompts, full buckets, an empty cache, and one that is full.
    """
    everyone = (manifest, *others)
    limit = min(min(m.cache_buckets[0] + 1, m.max_positions) for m in everyone)
    limit = min(limit, max_length or affordable(manifest))
    buckets = [
        S for S in manifest.prompt_buckets if all(S in m.prompt_buckets for m in others)
    ]
    asked = [("decode", 1, past, 1) for past in (0, 5, limit - 1)]
    for S in buckets:
        name, most = f"prefill_{S}", min(S, limit)
        asked += [(name, S, 0, new) for new in (1, 7, S - 1, S)]
        asked += [(name, S, 5, 4), (name, S, limit - min(3, most), min(3, most))]
    questions = [
        Question(name, (Row(0, past, new),), S, manifest.cache_buckets[0])
        for name, S, past, new in asked
        if past >= 0 and 1 <= new <= S and past + new <= limit
    ]
    return Plan(
        questions=tuple(dict.fromkeys(questions)),
        vocab_size=min(m.vocab_size for m in everyone),
        prompt_buckets=tuple(buckets),
        cache_buckets=tuple(manifest.cache_buckets),
        pad_token_id=manifest.pad_token_id,
    )


class EdgeModel:
    """A ``.tflite`` file of this package. ``problems`` is what is wrong beyond numbers.

    Raises:
        ExportError: LiteRT is not installed.
    """

    def __init__(self, file: Path, manifest: Manifest) -> None:
        require_litert()
        from ai_edge_litert.interpreter import Interpreter

        self._file, self._manifest = file, manifest
        self._layout = manifest.cache_layout
        self._slots = manifest.cache_buckets[0]
        self._prefix = np.zeros((0, *self._layout.row_shape), np.float32)
        self.problems: list[str] = []
        self._check_manifest()
        self._runtime = Interpreter(model_path=str(file))

    def observe(self, plan: Plan) -> list[Answer | None]:
        """Ask every question of the plan; None for one without an answer."""
        present = self._runtime.get_signature_list()
        wanted = ["decode", *(f"prefill_{S}" for S in self._manifest.prompt_buckets)]
        self.problems += [
            f"signature {name} is in the manifest alone"
            for name in wanted
            if name not in present
        ]
        try:
            self._cache_stream(plan)
        except (RuntimeError, ValueError, KeyError) as error:
            self.problems.append(f"caching a sequence: {brief(error)}")
            return [None] * len(plan.questions)
        return [self._ask(plan, question) for question in plan.questions]

    def close(self) -> None:
        """Give the memory back."""
        del self._runtime

    def _ask(self, plan: Plan, question: Question) -> Answer | None:
        (row,) = question.rows
        try:
            made = self._call(question.signature, plan.tokens(row), row.past)
        except (RuntimeError, ValueError, KeyError) as error:
            self.problems.append(f"{question.signature} {question}: {brief(error)}")
            return None
        return [made]

    def _call(self, name: str, ids: np.ndarray, past: int) -> dict[str, np.ndarray]:
        """Logits [V] and the new rows of the cache, behind ``past`` of the prefix."""
        run = self._runtime.get_signature_runner(name)
        padded = np.zeros((1, _size(name)), np.int32)
        padded[0, : len(ids)] = ids
        inputs = {"input_ids": padded, "cache_length": np.array([past], np.int32)}
        if padded.shape[1] > 1:
            inputs["input_length"] = np.array([len(ids)], np.int32)
        layout = self._layout
        for i in range(layout.layers):
            for kind, which in (("key", 0), ("value", 1)):
                shape = (1, layout.heads, self._slots, layout.head_dim)
                cache = np.full(shape, _NOISE, np.float32)
                cache[0, :, :past] = self._prefix[:past, i, which].swapaxes(0, 1)
                inputs[f"{kind}_{i}"] = cache
        made = run(**inputs)
        logits, rows = made["logits"], made["new_cache"]
        wanted = [(1, self._manifest.vocab_size), (*padded.shape, *layout.row_shape)]
        if [logits.shape, rows.shape] != wanted:
            raise ValueError(
                f"logits {logits.shape} and new_cache {rows.shape}, expected "
                f"{wanted[0]} and {wanted[1]}"
            )
        return {"logits": logits[0], "new_cache": rows[0, : len(ids)]}

    def _cache_stream(self, plan: Plan) -> None:
        """Cache the stream as far as any question needs it, in the largest pieces."""
        need = max(row.past for q in plan.questions for row in q.rows)
        tokens = plan.streams[0][:need]
        size = max(plan.prompt_buckets, default=1)
        name = f"prefill_{size}" if plan.prompt_buckets else "decode"
        while (begin := len(self._prefix)) < len(tokens):
            rows = self._call(name, tokens[begin : begin + size], begin)["new_cache"]
            self._prefix = np.concatenate([self._prefix, rows])

    def _check_manifest(self) -> None:
        """The manifest within the file is the one beside it, digests aside."""
        # What a device reads it with.
        from ...runtime.transports.litert_file import read_manifest

        inside = json.loads(read_manifest(self._file).to_json())
        beside = json.loads(self._manifest.to_json())
        different = [k for k in beside if k != "files" and beside[k] != inside.get(k)]
        if different:
            self.problems.append(
                f"the manifest in {self._file.name} differs from the one beside it in "
                f"{', '.join(sorted(different))}"
            )


def require_litert() -> None:
    """Raise ExportError without LiteRT."""
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError:
        raise ExportError(
            "running a TFLite model needs ai-edge-litert: pip install 'optserve[edge]'"
        ) from None


def _size(name: str) -> int:
    return 1 if name == "decode" else int(name.removeprefix("prefill_"))
