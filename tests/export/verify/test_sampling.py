"""What verification says of a sampler: nothing if it is right, else a sentence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from optserve.export.verify.answers import answer_of, check_shapes
from optserve.export.verify.plan import make_plan
from optserve.export.verify.prefixes import Prefixes
from optserve.export.verify.runner import _inputs
from optserve.export.verify.sampling import sampling_problems
from optserve.runtime import sampling
from optserve.runtime.contract import tokens_per_call
from optserve.runtime.transports.base import Call

from tests.runtime.numpy_model import NumpyTransport

Tensors = dict[str, np.ndarray]


def problems(version: int, change: Callable[[Tensors], Tensors]) -> list[str]:
    """Of a model in numpy whose sampler is given other inputs than it should be."""
    transport = NumpyTransport(generate=(8,), contract_version=version)
    manifest = transport.manifest

    def call(name: str, inputs: Tensors) -> Tensors:
        given = change(inputs) if tokens_per_call(name) else inputs
        return dict(transport.call(Call(name, given)).outputs)

    plan = make_plan(manifest, max_length=20)
    prefixes = Prefixes(plan, manifest.cache_layout, call)
    for token_sequence in range(4):
        prefixes.complete(token_sequence)
    sentences = []
    for case in plan.cases:
        if tokens_per_call(case.signature) is None:
            continue
        inputs = _inputs(plan, prefixes, case, manifest)
        outputs = call(case.signature, inputs)
        check_shapes(case, manifest, outputs)
        greedy = answer_of(case, manifest.cache_layout, outputs)
        ask = sampling_problems(
            case, inputs, greedy, lambda x, name=case.signature: call(name, x)
        )
        sentences += list(ask)
    return sentences


@pytest.fixture(autouse=True)
def _beyond_what_clients_may_ask_for(monkeypatch):
    monkeypatch.setattr(sampling, "_LARGEST_PENALTY", 1e6)


@pytest.mark.parametrize("version", [1, 2])
def test_a_right_sampler(version):
    assert problems(version, lambda inputs: inputs) == []


@pytest.mark.parametrize("name", ["bias", "frequency_penalty", "min_new_tokens"])
def test_a_sampler_that_ignores_an_input(name):
    told = problems(2, lambda inputs: {**inputs, name: np.zeros_like(inputs[name])})
    what = (
        "min_new_tokens" if name == "min_new_tokens" else "bias and frequency_penalty"
    )
    assert told and any(what in sentence for sentence in told)


def test_likeliest_tokens_in_another_order():
    transport = NumpyTransport(generate=(8,))
    plan = make_plan(transport.manifest, max_length=20)
    case = next(c for c in plan.cases if c.signature == "generate_8")
    layout = transport.manifest.cache_layout
    prefixes = Prefixes(plan, layout, lambda *_: {})
    inputs = _inputs(plan, prefixes, case, transport.manifest)
    outputs = dict(transport.call(Call("generate_8", inputs)).outputs)
    outputs["top_logprobs"] = outputs["top_logprobs"][..., ::-1]
    with pytest.raises(ValueError, match="are not in order"):
        answer_of(case, layout, outputs)
