"""Beam search, with the scores and the end conditions of Hugging Face's.

A beam's total is the sum of its tokens' processed log-probabilities (constraints see
log-probabilities here, not logits); a sequence that ends scores
total / (new tokens) ** length_penalty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as GenericSequence
from dataclasses import dataclass, replace

import numpy as np

from ...models.generation import beam_search as rules
from ...models.generation.sampling import log_softmax
from ..options import Beams
from ..results import Generation
from .loop import feed
from .model_versions import ModelVersions
from .sequence import Sequence
from .task import Task


@dataclass(frozen=True)
class _Candidate:
    """The sequence ``parent`` continued by one token."""

    parent: Sequence
    token: int
    logprob: float
    total: float

    def ends(self) -> bool:
        parent = self.parent
        if self.token in parent.stop_ids or parent.remaining <= 1:
            return True
        if not parent.options.stop:
            return False
        return parent.replay(self.token, 0.0).finish_reason is not None


def beam_search(sequence: Sequence, versions: ModelVersions) -> Task[Generation]:
    """Follow ``width`` continuations of a sequence; gives the best that ended."""
    beams = sequence.options.beams
    assert beams is not None
    running, totals = [sequence], [0.0]
    finished: list[tuple[float, Sequence]] = []
    try:
        while running:
            logits = yield from feed(running, versions)
            sequence.tick()
            candidates = _candidates(running, totals, logits, beams)
            going, ended = _sorted_out(candidates, beams)
            finished = sorted([*finished, *ended], key=lambda pair: -pair[0])
            finished = finished[: beams.width]
            if going and _settled(beams, [score for score, _ in finished], going[0]):
                going = []
            before, running = running, _continued(going)
            totals = [candidate.total for candidate in going]
            for left_behind in before:
                if left_behind not in running:
                    left_behind.leave_slot()
    finally:
        for one in running:
            one.leave_slot()
    results = [
        replace(ended.generation(), score=score, counters=sequence.counters)
        for score, ended in finished[: beams.returned]
    ]
    return replace(results[0], alternatives=results[1:])


def _sorted_out(
    candidates: GenericSequence[_Candidate], beams: Beams
) -> tuple[list[_Candidate], list[tuple[float, Sequence]]]:
    """The ``width`` best that go on, and those among the best that end, with scores."""
    going: list[_Candidate] = []
    finished: list[tuple[float, Sequence]] = []
    for rank, candidate in enumerate(candidates):
        if not candidate.ends():
            going.append(candidate)
        elif rank < beams.width:
            ended = candidate.parent.replay(candidate.token, candidate.logprob)
            score = rules.sequence_score(
                candidate.total, ended.generated, beams.length_penalty
            )
            finished.append((score, ended))
    return going[: beams.width], finished


def _candidates(
    running: GenericSequence[Sequence],
    totals: GenericSequence[float],
    logits: GenericSequence[np.ndarray],
    beams: Beams,
) -> list[_Candidate]:
    """The best continuations, best first: enough for ``width`` that don't end."""
    logprobs = [log_softmax(row) for row in logits]
    scores = np.concatenate(
        [
            sequence.processed(own) + np.float32(total)
            for sequence, own, total in zip(running, logprobs, totals, strict=True)
        ]
    )
    count = rules.candidate_count(beams.width, len(running[0].stop_ids))
    candidates = []
    for flat in rules.best_candidates(scores, count):
        if not np.isfinite(scores[flat]):
            break
        beam, token = divmod(int(flat), logprobs[0].size)
        logprob, total = float(logprobs[beam][token]), float(scores[flat])
        candidates.append(_Candidate(running[beam], token, logprob, total))
    return candidates


def _settled(beams: Beams, finished: GenericSequence[float], best: _Candidate) -> bool:
    """Whether no running beam may become better than ``width`` finished ones."""
    if len(finished) < beams.width:
        return False
    if beams.early_stopping is True:
        return True
    length = rules.compared_length(
        best.parent.generated + 1,
        best.parent.options.max_new_tokens,
        beams.length_penalty,
        beams.early_stopping,
    )
    score = rules.sequence_score(best.total, length, beams.length_penalty)
    return score <= finished[-1]


def _continued(going: GenericSequence[_Candidate]) -> list[Sequence]:
    """The next running sequences; a parent's last child takes over its cache."""
    children = Counter(id(candidate.parent) for candidate in going)
    sequences = []
    for candidate in going:
        key = id(candidate.parent)
        children[key] -= 1
        parent = candidate.parent
        sequence = parent.fork() if children[key] else parent
        sequence.grow(candidate.token, candidate.logprob)
        sequences.append(sequence)
    return sequences
