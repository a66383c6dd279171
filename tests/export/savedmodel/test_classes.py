"""What the model classes generate by themselves against what their export serves."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.models import FlaxOPTForCausalLM, TFOPTForCausalLM
from optserve.runtime import Client, Sampling

from ..exports import GOLDEN, exported

PROMPTS = [[2, 71, 16, 90], [2, 5], [2, 88, 100]]
OPTIONS = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
OPTIONS |= {"repetition_penalty": 1.1}


@pytest.mark.parametrize("cls", [TFOPTForCausalLM, FlaxOPTForCausalLM])
def test_the_same_seed_draws_the_same_tokens_served_and_in_generate(cls):
    """A left-padded batch here; one prompt after the other there."""
    longest = max(map(len, PROMPTS))
    ids = np.array([[1] * (longest - len(p)) + p for p in PROMPTS])
    output = cls.from_pretrained(GOLDEN / "pre_ln").generate(
        ids,
        attention_mask=np.where(ids == 1, 0, 1),
        max_new_tokens=10,
        do_sample=True,
        seed=2**35 + 9,
        return_dict_in_generate=True,
        **OPTIONS,
    )
    sampling = Sampling(seed=2**35 + 9, **OPTIONS)
    with Client(exported("pre_ln")) as client:
        for prompt, row in zip(PROMPTS, np.asarray(output.sequences), strict=True):
            (served,) = client.generate([prompt], max_new_tokens=10, sampling=sampling)
            new = row[longest:]
            assert served.tokens == new[: len(served.tokens)].tolist()
            assert len(served.tokens) == 10 or served.tokens[-1] == 2
