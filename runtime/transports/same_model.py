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
from collections.abc import Mapping, Sequence

_log = logging.getLogger(__name__)


class SameModel:
    """What is known of the replicas' models. Safe to use from several threads."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._agreed: dict[int, str] = {}  # version -> model
        self._confirmed: set[tuple[int, int]] = set()  # (replica, version)
        self._odd: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def agreed(self, version: int) -> str:
        """The model that most replicas serve as this version; "" if not known yet."""
        with self._lock:
            return self._agreed.get(version, "")

    def confirmed(self, index: int, version: int) -> bool:
        """Whether the replica serves the agreed model on the present connection."""
        with self._lock:
            return (index, version) in self._confirmed

    def forget(self, index: int) -> None:
        """The connection was lost: another process may answer from now on."""
        with self._lock:
            self._confirmed = {pair for pair in self._confirmed if pair[0] != index}

    def settle(self, version: int, models: Mapping[int, str]) -> str:
        """Note what replicas said that they serve; gives the agreed model.

        The majority decides; of equally many, the model agreed on before, else the one
        of the replica named first.
        """
        with self._lock:
            votes = Counter(models[index] for index in sorted(models))
            most = max(votes.values())
            winners = [model for model, count in votes.items() if count == most]
            before = self._agreed.get(version)
            agreed = before if before in winners else winners[0]
            if before not in (None, agreed):
                self._confirmed = {p for p in self._confirmed if p[1] != version}
            self._agreed[version] = agreed
            self._confirmed |= {(i, version) for i in models if models[i] == agreed}
            odd = {(i, version) for i in models if models[i] != agreed}
            newly_odd, self._odd = odd - self._odd, self._odd | odd
        for index, _ in newly_odd:
            _log.warning(
                "%s left out: it serves another model as version %d (%s, others %s)",
                self._targets[index],
                version,
                models[index],
                agreed,
            )
        return agreed
