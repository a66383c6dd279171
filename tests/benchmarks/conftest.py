"""A run, as if it had been measured."""

from __future__ import annotations

import pytest

from .figures import Case, DecodeFigure, LoadFigure, ProcessFigure, Run


@pytest.fixture
def run() -> Run:
    """Two engines, one of which is ours."""
    machine = {"cpu": "A CPU", "features": "avx2", "gigabytes_per_second": 40}
    names = ("optserve-int8", "peer-int8")
    return Run(
        "125m",
        2,
        "abc1234",
        machine,
        [ProcessFigure(n, "1", 10**8, 2.5, 3.5, 10**9, 9 * 10**8) for n in names],
        [
            DecodeFigure(n, Case(128, batch, 65), [0.1, 0.2, 0.3], [0.74, 0.84, 0.94])
            for n in names
            for batch in (1, 8)
        ],
        [LoadFigure(names[0], 32, 64, [100.0], [1.0], [2.0], [0.1], [0.5])],
    )
