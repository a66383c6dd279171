"""Decoding against ``transformers``' own ``generate``, over the golden checkpoints."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from optserve.runtime import Beams, Client, Constraints, Sampling

from .numpy_model import GOLDEN, NumpyTransport

pytestmark = pytest.mark.reference
CASES = ("pre_ln", "no_final_ln", "bias_free_gelu")
PROMPTS = np.random.default_rng(3).integers(4, 119, (3, 7)).tolist()


@cache
def reference_model(case: str):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # the matrices are tiny
    folder = GOLDEN / case
    return torch, transformers.OPTForCausalLM.from_pretrained(folder).float().eval()


def reference(case: str, prompt: list[int], **options):
    torch, model = reference_model(case)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = []
    for row in out.sequences.tolist():
        new = row[len(prompt) :]
        ends = options.get("eos_token_id", [2])
        end = next((i + 1 for i, t in enumerate(new) if t in ends), len(new))
        rows.append(new[:end])
    scores = getattr(out, "sequences_scores", None)
    return rows, None if scores is None else scores.tolist()


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("case", CASES)
def test_beam_search(case, penalty, early):
    ends = [2, 30, 35, 40, 64, 90, 91]  # frequent ones, so that beams do end
    beams = Beams(width=3, returned=3, length_penalty=penalty, early_stopping=early)
    with Client(transport=NumpyTransport(GOLDEN / case)) as client:
        generations = client.generate(
            PROMPTS, max_new_tokens=14, beams=beams, stop_token_ids=ends
        )
    for prompt, best in zip(PROMPTS, generations, strict=True):
        rows, scores = reference(
            case,
            prompt,
            max_new_tokens=14,
            num_beams=3,
            num_return_sequences=3,
            length_penalty=penalty,
            early_stopping=early,
            eos_token_id=ends,
        )
        ours = [best, *best.alternatives]
        assert [s.tokens for s in ours] == rows
        np.testing.assert_allclose([s.score for s in ours], scores, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
        (
            {"bad_words": [[30], [35, 35], [91, 22]]},
            {"bad_words_ids": [[30], [35, 35], [91, 22]]},
        ),
        ({"min_new_tokens": 6}, {"min_new_tokens": 6}),
    ],
)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_constraints(case, width, ours, theirs):
    ends = [2, 40, 64, 89]
    with Client(transport=NumpyTransport(GOLDEN / case)) as client:
        generations = client.generate(
            PROMPTS,
            max_new_tokens=14,
            beams=Beams(width=width) if width > 1 else None,
            sampling=Sampling(temperature=0.0, repetition_penalty=1.2),
            constraints=Constraints(**ours),
            stop_token_ids=ends,
        )
    for prompt, best in zip(PROMPTS, generations, strict=True):
        options = {"repetition_penalty": 1.2, "eos_token_id": ends, **theirs}
        rows, _ = reference(case, prompt, max_new_tokens=14, num_beams=width, **options)
        assert best.tokens == rows[0]
