"""Runs a target on many cases and counts."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

CASES = int(os.environ.get("OPTSERVE_FUZZ_CASES", "150"))
SEED = int(os.environ.get("OPTSERVE_FUZZ_SEED", "1"))
_SHOWN = 5  # failures in full; the others are counted

Target = Callable[[np.random.Generator], str]


@pytest.fixture
def fuzz(request) -> Callable[..., Counter[str]]:
    """Calls ``target(rng)``, which says what became of its case, for each case."""

    def run(target: Target, *, share: float = 1.0) -> Counter[str]:
        counts: Counter[str] = Counter()
        failures = []
        for number in range(max(1, int(CASES * share))):
            try:
                counts[target(np.random.default_rng((SEED, number)))] += 1
            except Exception:
                failures.append(f"case {number}: {traceback.format_exc(limit=-4)}")
        name = request.node.name.removeprefix("test_")
        said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"\nfuzz, seed {SEED}, {name}: {said}, {len(failures)} failed")
        assert not failures, "\n".join(failures[:_SHOWN])
        return counts

    return run
