"""Runs a TFLite file's signatures by LiteRT, as on a device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...runtime.contract import Manifest
from ..errors import ExportError
from .answers import Answer, brief
from .plan import Plan, Row, TestCase, affordable_length

_NOISE = 100.0


def make_tflite_plan(manifest: Manifest, *others: Manifest, max_length: int | None):
    """Test cases for a file's ``decode`` and ``prefill_{S}``: one row, fixed sizes.

    Shortest and odd prompts, full buckets, an empty cache, and one that is full.
    """
    everyone = (manifest, *others)
    limit = min(min(m.cache_buckets[0] + 1, m.max_positions) for m in everyone)
    limit = min(limit, max_length or affordable_length(manifest))
    buckets = [
        S for S in manifest.prompt_buckets if all(S in m.prompt_buckets for m in others)
    ]
    shapes = [("decode", 1, past, 1) for past in (0, 5, limit - 1)]
    for S in buckets:
        name, most = f"prefill_{S}", min(S, limit)
        shapes += [(name, S, 0, new) for new in (1, 7, S - 1, S)]
        shapes += [(name, S, 5, 4), (name, S, limit - min(3, most), min(3, most))]
    cases = [
        TestCase(name, (Row(0, past, new),), S, manifest.cache_buckets[0])
        for name, S, past, new in shapes
        if past >= 0 and 1 <= new <= S and past + new <= limit
    ]
    return Plan(
        cases=tuple(dict.fromkeys(cases)),
        vocab_size=min(m.vocab_size for m in everyone),
        prompt_buckets=tuple(buckets),
        cache_buckets=tuple(manifest.cache_buckets),
        pad_token_id=manifest.pad_token_id,
    )


class TFLiteRunner:
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

    def run(self, plan: Plan) -> list[Answer | None]:
        """The answer to every test case of the plan; None where there is none."""
        present = self._runtime.get_signature_list()
        promised = ["decode", *(f"prefill_{S}" for S in self._manifest.prompt_buckets)]
        self.problems += [
            f"signature {name} is in the manifest alone"
            for name in promised
            if name not in present
        ]
        try:
            self._cache_sequence(plan)
        except (RuntimeError, ValueError, KeyError) as error:
            self.problems.append(f"caching a sequence: {brief(error)}")
            return [None] * len(plan.cases)
        return [self._run_case(plan, case) for case in plan.cases]

    def close(self) -> None:
        """Let go of the model."""
        del self._runtime

    def _run_case(self, plan: Plan, case: TestCase) -> Answer | None:
        (row,) = case.rows
        try:
            answer = self._call(case.signature, plan.new_tokens(row), row.past)
        except (RuntimeError, ValueError, KeyError) as error:
            self.problems.append(f"{case.signature} {case}: {brief(error)}")
            return None
        return [answer]

    def _call(self, name: str, ids: np.ndarray, past: int) -> dict[str, np.ndarray]:
        """Logits [V] and the new rows of the cache, after ``past`` of the prefix."""
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
        outputs = run(**inputs)
        logits, rows = outputs["logits"], outputs["new_cache"]
        expected = [(1, self._manifest.vocab_size), (*padded.shape, *layout.row_shape)]
        if [logits.shape, rows.shape] != expected:
            raise ValueError(
                f"logits {logits.shape} and new_cache {rows.shape}, expected "
                f"{expected[0]} and {expected[1]}"
            )
        return {"logits": logits[0], "new_cache": rows[0, : len(ids)]}

    def _cache_sequence(self, plan: Plan) -> None:
        """Cache a sequence as far as any test case needs it, in the largest chunks."""
        tokens = plan.token_sequences[0][: plan.longest_past(0)]
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
