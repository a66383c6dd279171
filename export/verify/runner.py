"""Runs a SavedModel's signatures as a server would, over all test cases of a plan."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.contract import Manifest, signature, tokens_per_call
from ...runtime.memory import release_freed_memory
from .answers import Answer, answer_of, brief, check_shapes
from .plan import TOKEN_SEQUENCES, Plan, TestCase
from .prefixes import Prefixes
from .sampling import greedy_inputs, sampling_problems
from .sessions import session_cases, session_problems

_AT_ONCE = 2
"""Calls: getting a graph ready, which takes longer than most answers, keeps one
processor busy."""


class ExportRunner:
    """A loaded SavedModel of the contract.

    ``problems`` collects what is wrong beyond numbers: missing signatures, wrong
    shapes, a manifest that is not the file's.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from ...runtime.server.servable import Servable
        from ...runtime.server.settings import SessionOptions

        # A server's way to load is the one to try, and takes less memory.
        self._loaded = Servable(str(folder), SessionOptions(), manifest=manifest)
        release_freed_memory()
        self._manifest = manifest
        self.problems: list[str] = []

    def run(self, plan: Plan) -> list[Answer | None]:
        """The answer to every test case of the plan; None where there is none."""
        for name in self._manifest.signatures:
            if name not in self._loaded.signatures:
                self.problems.append(f"signature {name} is in the manifest alone")
        prefixes = Prefixes(plan, self._manifest.cache_layout, self._call)
        cases = interleaved(plan.cases)
        first = [case for case in cases if case.slots is None]
        then = [case for case in cases if case.slots is not None]
        with ThreadPoolExecutor(_AT_ONCE) as pool:

            def run_all(cases: list[TestCase]) -> list[Answer | None]:
                return list(
                    pool.map(lambda c: self._run_case(plan, prefixes, c), cases)
                )

            answered = dict(zip(first, run_all(first), strict=True))
            self._complete(prefixes)
            answered.update(zip(then, run_all(then), strict=True))
            list(
                pool.map(
                    lambda pair: self._check_sampling(plan, prefixes, *pair),
                    _first_and_last_generations(answered),
                )
            )
        for case in session_cases(plan.cases, self._manifest):
            self._check_session(plan, prefixes, case)
        self.problems.sort()
        return [answered[case] for case in plan.cases]

    def close(self) -> None:
        """Let go of the weights; nothing can be called any more.

        With oneDNN the memory stays TensorFlow's, for its next tensors.
        """
        self._loaded.close()
        release_freed_memory()

    def _run_case(
        self, plan: Plan, prefixes: Prefixes, case: TestCase
    ) -> Answer | None:
        name = case.signature
        if name not in self._loaded.signatures:
            return None
        try:
            if name in ("describe", "tokenizer"):
                return self._strings(case)
            outputs = self._call(name, _inputs(plan, prefixes, case, self._manifest))
            check_shapes(case, self._manifest, outputs)
            if name == "prefill":
                prefixes.keep(case, outputs["new_cache"])
            return answer_of(case, self._manifest.cache_layout, outputs)
        except Exception as error:  # whatever a graph raises is this case's answer
            self.problems.append(f"{name} {case}: {brief(error)}")
            return None

    def _call(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        signature = self._loaded.signatures[name]
        signature.check_dtypes(inputs)
        names = list(signature.outputs)
        outputs = self._loaded.run(signature, inputs, names)
        release_freed_memory()  # what a graph's first call has used
        return dict(zip(names, outputs, strict=True))

    def _complete(self, prefixes: Prefixes) -> None:
        for token_sequence in range(TOKEN_SEQUENCES):
            try:
                prefixes.complete(token_sequence)
            except Exception as error:
                self.problems.append(f"caching a sequence: {brief(error)}")

    def _check_sampling(
        self, plan: Plan, prefixes: Prefixes, case: TestCase, greedy: Answer
    ) -> None:
        def call(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self._call(case.signature, inputs)

        try:
            inputs = _inputs(plan, prefixes, case, self._manifest)
            self.problems.extend(sampling_problems(case, inputs, greedy, call))
        except Exception as error:
            self.problems.append(f"{case.signature} {case}: {brief(error)}")

    def _check_session(self, plan: Plan, prefixes: Prefixes, case: TestCase) -> None:
        try:
            inputs = _inputs(plan, prefixes, case, self._manifest)
            layout = self._manifest.cache_layout
            self.problems.extend(session_problems(case, inputs, layout, self._call))
        except Exception as error:
            self.problems.append(f"session_{case.signature} {case}: {brief(error)}")

    def _strings(self, case: TestCase) -> Answer:
        row = np.zeros(len(case.rows), np.int32)
        (texts,) = self._call(case.signature, {"row": row}).values()
        if texts.shape != row.shape or len(set(texts.tolist())) != 1:
            raise ValueError(f"{len(row)} equal strings expected, got {texts.shape}")
        content = json.loads(texts[0])
        if case.signature == "describe":
            self._check_manifest(content)
        return [{} for _ in case.rows]

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


def _inputs(
    plan: Plan, prefixes: Prefixes, case: TestCase, manifest: Manifest
) -> dict[str, np.ndarray]:
    rows, S = case.rows, case.size
    ids = np.full((len(rows), S), plan.pad_token_id, np.int32)
    mask = np.zeros((len(rows), S), np.int32)
    for b, row in enumerate(rows):
        at = slice(S - row.new, S) if case.left else slice(0, row.new)
        ids[b, at], mask[b, at] = plan.new_tokens(row), 1
    if case.signature == "serving_default":
        return {"input_ids": ids, "attention_mask": mask}
    inputs = {"input_ids": ids, "input_length": mask.sum(1, dtype=np.int32)}
    if case.slots is not None:
        inputs.update(prefixes.cache(case))
    if tokens_per_call(case.signature):
        inputs.update(greedy_inputs(case))
    version = manifest.contract_version
    spec = signature(case.signature, manifest.cache_layout, version=version)
    return {tensor.name: inputs[tensor.name] for tensor in spec.inputs}


def interleaved(cases: Sequence[TestCase]) -> list[TestCase]:
    """One case of each signature, then the second of each, and so on: two at once would
    wait for the same graph."""
    rank: Counter[str] = Counter()
    turns = []
    for case in cases:
        turns.append(rank[case.signature])
        rank[case.signature] += 1
    return [cases[i] for i in sorted(range(len(turns)), key=turns.__getitem__)]


def _first_and_last_generations(
    answered: dict[TestCase, Answer | None],
) -> Iterator[tuple[TestCase, Answer]]:
    """One row and several, of each signature that generates."""
    generations: dict[str, list[tuple[TestCase, Answer]]] = {}
    for case, answer in answered.items():
        if answer is not None and tokens_per_call(case.signature):
            generations.setdefault(case.signature, []).append((case, answer))
    for pairs in generations.values():
        yield from pairs if len(pairs) == 1 else (pairs[0], pairs[-1])
