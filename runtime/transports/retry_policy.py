"""When a failed call is tried again: each replica once a round, then a longer wait."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..codec import ModelSpec
from ..errors import OptserveError
from .connection import Retry
from .replicas import Replicas
from .status_mapping import LEAVE_OUT, Failure, Outcome, error_for, one_line

_log = logging.getLogger(__name__)

_NAMED_PATIENCE = 0.5  # seconds for the replicas that a call names: it has other ways
_MISSING_PATIENCE = 3.0  # seconds for replicas that are down to return with a version
_HOPELESS = {  # waiting won't help
    Failure.MISSING,
    Failure.ODD,
    Failure.GARBLED,
    Failure.UNTRUSTED,
}
_MOST_TELLING = (  # the failure to report where several kinds happened
    Failure.MISSING,
    Failure.ODD,
    Failure.EXHAUSTED,
    Failure.BUSY,
    Failure.UNTRUSTED,
    Failure.DOWN,
    Failure.GARBLED,
)


class Attempts:
    """The failed attempts of one call, and what they mean for the next one.

    ``named`` says that the call may go to some replicas only, whose failure its caller
    can do something about.
    """

    def __init__(
        self,
        replicas: Replicas,
        model: ModelSpec,
        retry: Retry,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        *,
        named: bool = False,
    ) -> None:
        self.tried: dict[int, tuple[Failure, Outcome]] = {}
        """Replicas that have failed in this round."""
        self.last: Outcome | None = None
        self.failed = 0
        self._replicas = replicas
        self._model = model
        self._retry = retry
        self._clock = clock
        self._jitter = jitter
        self._named = named
        self._rounds = 0
        self._started = clock()

    def note(self, index: int, failure: Failure, outcome: Outcome) -> None:
        """Record a failed attempt.

        Raises:
            OptserveError: no other replica could do better.
        """
        self.failed += 1
        self.tried[index] = (failure, outcome)
        self.last = outcome
        if failure in LEAVE_OUT:
            self._replicas.failed(index)
        else:
            self._replicas.succeeded(index)
        if failure is Failure.REFUSED:
            raise self._error(failure)
        target, details = self._replicas.targets[index], one_line(outcome.details)
        _log.debug("attempt failed: %s: %s %s", target, outcome.code, details)

    def end_round(self, time_left: float | None) -> float:
        """Every replica has failed: the seconds to wait before the next round.

        Raises:
            OptserveError: waiting won't help, or has been enough.
        """
        retry, answered = self._retry, self._replicas.answered
        kinds = {failure for failure, _ in self.tried.values()}
        self._rounds += 1
        # One that was trusted before is restarting, perhaps.
        hopeless = _HOPELESS - ({Failure.UNTRUSTED} if answered else set())
        if kinds <= hopeless:
            raise self._most_telling(kinds)
        if kinds == {Failure.EXHAUSTED} and self._rounds >= retry.busy_rounds:
            raise self._error(Failure.EXHAUSTED)
        patience = retry.recover if answered else retry.connect
        if Failure.MISSING in kinds:  # others may have it once they are back
            patience = min(patience, _MISSING_PATIENCE)
        if self._named and not kinds <= {Failure.BUSY, Failure.EXHAUSTED}:
            patience = min(patience, _NAMED_PATIENCE)
        doubled = retry.first_wait * 2 ** min(self._rounds - 1, 30)
        wait = min(doubled, retry.longest_wait) * (0.5 + self._jitter() / 2)
        if self._clock() + wait > self._started + patience:
            raise self._most_telling(kinds)
        self.tried.clear()
        return wait if time_left is None else max(min(wait, time_left), 0.0)

    def _most_telling(self, kinds: set[Failure]) -> OptserveError:
        return self._error(next(kind for kind in _MOST_TELLING if kind in kinds))

    def _error(self, kind: Failure) -> OptserveError:
        index, outcome = next(
            (i, outcome)
            for i, (failure, outcome) in self.tried.items()
            if failure is kind
        )
        target, others = self._replicas.targets[index], len(self._replicas.targets) - 1
        return error_for(kind, outcome, target, self._model, others=others)
