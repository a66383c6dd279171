"""What operations tell where a server gives no answer in time, without a network."""

from __future__ import annotations

import pytest
from optserve.runtime.errors import Unavailable
from optserve.runtime.transports.connection import Connection
from optserve.runtime.transports.operations import Operations
from optserve.runtime.transports.status_mapping import Outcome
from optserve.runtime.transports.steps import Attempt, Pause

REFUSED = Outcome("NOT_FOUND", "no such model")
CUT_SHORT = Outcome("DEADLINE_EXCEEDED", "Deadline Exceeded")


@pytest.mark.parametrize("answers", [[REFUSED, REFUSED], [REFUSED, CUT_SHORT]])
def test_what_a_server_said_last_is_told(answers: list[Outcome]) -> None:
    """Also where the time that is left is too short for one more answer."""
    now, outcomes = [0.0], iter(answers)
    operations = Operations(("a:1",), "opt", Connection(), clock=lambda: now[0])
    waiting = operations.wait_until_ready(0.201)
    outcome = None
    with pytest.raises(Unavailable, match=r"\(a:1: NOT_FOUND no such model\)"):
        while True:
            match waiting.send(outcome):
                case Pause(seconds):
                    now[0] += seconds
                    outcome = None
                case Attempt(timeout=timeout):
                    assert timeout is not None and timeout > 0
                    outcome = next(outcomes)
    assert next(outcomes, None) is None  # both were asked for


def test_a_frozen_replica_leaves_time_for_the_others() -> None:
    now, timeouts, step = [0.0], list[float](), None
    operations = Operations(
        ("a:1", "b:2", "c:3"), "opt", Connection(), clock=lambda: now[0]
    )
    waiting = operations.wait_until_ready(3.0)
    step = waiting.send(None)
    while isinstance(step, Attempt) and len(timeouts) < 3:
        timeouts.append(step.timeout or 0.0)
        now[0] += timeouts[-1]
        if len(timeouts) < 3:
            step = waiting.send(CUT_SHORT)
    assert timeouts == pytest.approx([1.0, 1.0, 1.0])
