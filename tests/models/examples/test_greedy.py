"""Greedy text with a cache is that of the whole sequence fed anew at each step."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.models import OPTConfig
from optserve.models.checkpoints import open_weights
from optserve.models.examples import greedy

from tests.models import numpy_opt

GOLDEN = "pre_ln"


@pytest.fixture(scope="module")
def checkpoint(data_dir):
    return data_dir / "golden" / GOLDEN


@pytest.fixture(scope="module")
def expected(checkpoint) -> list[int]:
    config = OPTConfig.from_pretrained(checkpoint)
    weights = {k: np.array(v) for k, v in open_weights(checkpoint).items()}
    ids = [2, 5, 6, 7]
    for _ in range(greedy.NEW_TOKENS):
        logits = numpy_opt.forward(config, weights, np.array([ids]))["logits"]
        ids.append(int(logits[0, -1].argmax()))
    return ids[4:]


@pytest.mark.parametrize("make", [greedy.keras_tokens, greedy.flax_tokens])
def test_the_cache_changes_nothing(make, checkpoint, expected):
    assert make(checkpoint, [2, 5, 6, 7]) == expected
