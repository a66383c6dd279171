"""Beam search, with the scores and the end conditions of Hugging Face's.

A beam's total is the sum of its tokens' processed log-probabilities (constraints see
log-probabilities here, not logits); a sequence that ends scores
total / (new tokens) ** length_penalty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...models.generation import beam_search as rules
from ...models.generation.sampling import log_softmax
from ..options import Beams
from ..results import Generation
from .loop import Work, feed
from .sequence import Row
from .served_model import Catalog


@dataclass(frozen=True)
class _Candidate:
    """The row ``parent`` continued by one token."""

    parent: Row
    token: int
    logprob: float
    total: float

    def ends(self) -> bool:
        row = self.parent
        if self.token in row.stop_ids or row.remaining <= 1:
            return True
        stops = row.options.stop
        return bool(stops) and row.replay(self.token, 0.0).finish_reason is not None


def beam_search(row: Row, catalog: Catalog) -> Work[Generation]:
    """Follow ``width`` continuations of a row; gives the best that ended."""
    beams = row.options.beams
    assert beams is not None
    running, totals = [row], [0.0]
    finished: list[tuple[float, Row]] = []
    while running:
        logits = yield from feed(running, catalog)
        row.tick()
        going: list[_Candidate] = []
        for rank, candidate in enumerate(_candidates(running, totals, logits, beams)):
            if not candidate.ends():
                going.append(candidate)
            elif rank < beams.width:
                ended = candidate.parent.replay(candidate.token, candidate.logprob)
                score = rules.sequence_score(
                    candidate.total, ended.generated, beams.length_penalty
                )
                finished.append((score, ended))
        finished = sorted(finished, key=lambda pair: -pair[0])[: beams.width]
        going = going[: beams.width]
        if going and _settled(beams, [score for score, _ in finished], going[0]):
            going = []
        running = _continued(going)
        totals = [candidate.total for candidate in going]
    results = [
        replace(ended.generation(), score=score, counters=row.counters)
        for score, ended in finished[: beams.returned]
    ]
    return replace(results[0], alternatives=results[1:])


def _candidates(
    running: Sequence[Row],
    totals: Sequence[float],
    logits: Sequence[np.ndarray],
    beams: Beams,
) -> list[_Candidate]:
    """The best continuations, best first: enough for ``width`` that don't end."""
    logprobs = [log_softmax(row) for row in logits]
    scores = np.concatenate(
        [
            row.processed(own) + np.float32(total)
            for row, own, total in zip(running, logprobs, totals, strict=True)
        ]
    )
    count = rules.candidate_count(beams.width, len(running[0].stop_ids))
    found = []
    for flat in rules.best_candidates(scores, count):
        if not np.isfinite(scores[flat]):
            break
        beam, token = divmod(int(flat), logprobs[0].size)
        total = float(scores[flat])
        found.append(
            _Candidate(running[beam], token, float(logprobs[beam][token]), total)
        )
    return found


def _settled(beams: Beams, finished: Sequence[float], best: _Candidate) -> bool:
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


def _continued(going: Sequence[_Candidate]) -> list[Row]:
    """The next running rows; a parent's last child takes over its cache."""
    children = Counter(id(candidate.parent) for candidate in going)
    rows = []
    for candidate in going:
        key = id(candidate.parent)
        children[key] -= 1
        row = candidate.parent.fork() if children[key] else candidate.parent
        row.grow(candidate.token, candidate.logprob)
        rows.append(row)
    return rows
