"""Whether the replicas serve the same model under a version number.

A cache from one model, continued by another, gives a text that is neither's, and
nothing in the replies would tell. So the first reply of a version makes the client ask
every replica what it serves, and the majority decides. Each replica is asked again when
its connection was lost, since another process may answer now.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import MalformedReply, VersionGone
from .base import Call, Described, Identity
from .replicas import Replicas
from .status_mapping import MALFORMED, ODD, Outcome

_log = logging.getLogger(__name__)

_ASK_TIMEOUT = 1.0  # seconds for a replica to say what it serves
_MOST_VERSIONS = 64  # remembered; a hostile replica may name any number of them

Ask = Callable[[int, Call, float], Generator[Any, Any, Outcome]]
"""One attempt at a call on one replica; its reply comes read and checked."""


class Votes:
    """What is known of the replicas' models. Safe to use from several threads."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._agreed: dict[int, Described] = {}  # by version, the oldest first
        self._confirmed: set[tuple[int, int]] = set()  # (replica, version)
        self._odd: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def agreed(self, version: int) -> Described | None:
        """The model that most replicas serve as this version, if that is known."""
        with self._lock:
            return self._agreed.get(version)

    def confirmed(self, index: int, version: int) -> bool:
        """Whether the replica serves the agreed model on the present connection."""
        with self._lock:
            return (index, version) in self._confirmed

    def forget(self, index: int) -> None:
        """The connection was lost: another process may answer from now on."""
        with self._lock:
            self._confirmed = {pair for pair in self._confirmed if pair[0] != index}

    def settle(self, version: int, models: Mapping[int, Described]) -> str:
        """Note what replicas said that they serve; gives the agreed model's id.

        The majority decides; of equally many, the model agreed on before, else the one
        of the replica named first.
        """
        ids = {index: models[index].model_id for index in sorted(models)}
        with self._lock:
            votes = Counter(ids.values())
            most = max(votes.values())
            winners = [model for model, count in votes.items() if count == most]
            known = self._agreed.pop(version, None)
            before = known.model_id if known else None
            agreed = before if before in winners else winners[0]
            if before not in (None, agreed):
                self._confirmed = {p for p in self._confirmed if p[1] != version}
            self._agreed[version] = next(
                models[i] for i, model in ids.items() if model == agreed
            )
            self._confirmed |= {(i, version) for i in ids if ids[i] == agreed}
            odd = {(i, version) for i in ids if ids[i] != agreed}
            newly_odd, self._odd = odd - self._odd, self._odd | odd
            self._drop_the_oldest()
        for index, _ in newly_odd:
            _log.warning(
                "%s left out: it serves another model as version %d (%s, others %s)",
                self._targets[index],
                version,
                ids[index],
                agreed,
            )
        return agreed

    def _drop_the_oldest(self) -> None:
        while len(self._agreed) > _MOST_VERSIONS:
            oldest = next(iter(self._agreed))
            del self._agreed[oldest]
            self._confirmed = {p for p in self._confirmed if p[1] != oldest}
            self._odd = {p for p in self._odd if p[1] != oldest}


class SameModel:
    """Asks the replicas what they serve, as often as that may have changed.

    Args:
        replicas: the transport's.
        identity: what to ask, and how to read the answer; None trusts version numbers.
        ask: makes one attempt.
    """

    def __init__(self, replicas: Replicas, identity: Identity | None, ask: Ask) -> None:
        self._replicas = replicas
        self._identity = identity
        self._ask = ask
        self._votes = Votes(replicas.targets)

    def described(self, version: int) -> Described | None:
        """The model that most replicas serve as this version, if that is known."""
        return self._votes.agreed(version)

    def model_id(self, version: int) -> str:
        """Its id; "" if it is not known."""
        described = self._votes.agreed(version)
        return described.model_id if described else ""

    def forget(self, index: int) -> None:
        """The connection was lost: another process may answer from now on."""
        self._votes.forget(index)

    def why_not(
        self, index: int, version: int, model_id: str, timeout: float | None = None
    ) -> Generator[Any, Any, Outcome | None]:
        """Why a replica can't be relied on to serve a version's model; None if it can.

        Args:
            index: the replica.
            version: of the model.
            model_id: the model whose cache is to be sent, "" for none.
            timeout: seconds that the replica has to answer.

        Raises:
            VersionGone: every replica serves another model as that version by now.
        """
        if self._identity is None:
            return None
        if not self._votes.confirmed(index, version):
            outcome = yield from self._describe(index, version, timeout or _ASK_TIMEOUT)
            if outcome.code != "OK":
                return outcome
            described: Described = outcome.result
            models = {index: described}
            if described.model_id != self.model_id(version):
                models |= yield from self._others(index, version)
            if self._votes.settle(version, models) != described.model_id:
                return Outcome(ODD, "it serves another model than the other replicas")
        agreed = self.model_id(version)
        if model_id not in ("", agreed):
            raise VersionGone(
                f"version {version} is another model now ({agreed}, before {model_id})",
                "NOT_FOUND",
            )
        return None

    def _others(
        self, index: int, version: int
    ) -> Generator[Any, Any, dict[int, Described]]:
        """What the other healthy replicas say that they serve."""
        models = {}
        for other in range(len(self._replicas.targets)):
            if other != index and self._replicas.is_healthy(other):
                outcome = yield from self._describe(other, version, _ASK_TIMEOUT)
                if outcome.code == "OK":
                    models[other] = outcome.result
                elif outcome.code == "UNAVAILABLE":
                    self._replicas.failed(other)
        return models

    def _describe(
        self, index: int, version: int, timeout: float
    ) -> Generator[Any, Any, Outcome]:
        """Have one replica say what it serves, the outcome's result."""
        assert self._identity is not None
        question = replace(self._identity.question, version=version)
        outcome = yield from self._ask(index, question, timeout)
        if outcome.code != "OK":
            return outcome
        try:
            described = self._identity.read(outcome.result.outputs, version)
        except MalformedReply as error:
            return Outcome(MALFORMED, str(error))
        return replace(outcome, result=described)
