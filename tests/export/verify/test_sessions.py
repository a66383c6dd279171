"""Sessions that differ from explicit caches are found, by the numpy model of both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from optserve.export.verify.plan import Row, TestCase, make_plan
from optserve.export.verify.sessions import session_cases, session_problems
from optserve.runtime.transports.base import Call

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.session_schedule import off

Tensors = dict[str, np.ndarray]
SIZES = {"slots": 3, "positions": 48}
CASES = [
    TestCase("decode", (Row(0, 6, 2),), 2, 6),
    TestCase("generate_4", (Row(0, 5, 2), Row(1, 0, 1)), 2, 5),
]


@pytest.fixture(scope="module")
def model() -> NumpyTransport:
    return NumpyTransport(generate=(1, 4), sessions=SIZES)


def inputs_of(model: NumpyTransport, case: TestCase) -> Tensors:
    B, random = len(case.rows), np.random.default_rng(0)
    shape = (B, case.slots, *model.manifest.cache_layout.row_shape)
    inputs = {
        "input_ids": random.integers(4, 99, (B, case.size), np.int32),
        "input_length": np.array([row.new for row in case.rows], np.int32),
        "cache": random.normal(size=shape).astype(np.float32),
        "cache_length": np.array([row.past for row in case.rows], np.int32),
    }
    if case.signature == "generate_4":
        inputs |= off(model.manifest, 4, B)
        inputs["max_new_tokens"] = np.array([4, 2], np.int32)
    return inputs


def problems(
    model: NumpyTransport,
    case: TestCase,
    change: Callable[[str, Tensors, Tensors], None] = lambda *_: None,
) -> list[str]:
    def call(name: str, inputs: Tensors) -> Tensors:
        outputs = dict(model.call(Call(name, inputs)).outputs)
        change(name, inputs, outputs)
        return outputs

    inputs, layout = inputs_of(model, case), model.manifest.cache_layout
    return list(session_problems(case, inputs, layout, call))


def no_ticket_is_checked(name: str, inputs: Tensors, outputs: Tensors) -> None:
    if "alive" in outputs:
        outputs["alive"] = np.ones_like(outputs["alive"])


def nothing_is_alive(name: str, inputs: Tensors, outputs: Tensors) -> None:
    if name == "session_write":
        outputs["alive"] = np.zeros_like(outputs["alive"])


def answers_differ(name: str, inputs: Tensors, outputs: Tensors) -> None:
    if name in ("session_generate_4", "session_decode"):
        for key in outputs.keys() & {"tokens", "logits"}:
            outputs[key] = outputs[key] + 1


def rows_differ(name: str, inputs: Tensors, outputs: Tensors) -> None:
    if name == "session_read":
        outputs["cache"] = outputs["cache"] + 0.1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_honest_model_has_no_problems(model, case):
    assert problems(model, case) == []


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_ticket_is_checked, "a void ticket is alive"),
        (nothing_is_alive, "a session is not alive"),
        (answers_differ, "differs from the explicit cache's"),
        (rows_differ, "the rows written differ"),
    ],
)
def test_others_are_said(model, case, change, said):
    actual = problems(model, case, change)
    assert any(said in problem for problem in actual), actual


def test_cases_are_those_that_fit_the_slots(model):
    plan = make_plan(model.manifest)
    cases = list(session_cases(plan.cases, model.manifest))
    assert {case.signature for case in cases} == {"decode", "generate_1", "generate_4"}
    assert any(len(case.rows) > 1 for case in cases)
    for case in cases:
        assert 0 < len(case.rows) <= SIZES["slots"]
        assert any(row.past for row in case.rows)
    named = {case.signature for case in plan.cases}
    assert not any(name.startswith("session_") for name in named)


def test_an_export_with_sessions_has_no_problems():
    from optserve.export.verify.runner import ExportRunner
    from optserve.runtime.model_dir import read_manifest

    from tests.export.exports import exported

    sessions = {"sessions": 3, "session_slots": 40, "generate": (1, 8)}
    folder = exported("pre_ln", **sessions)
    manifest = read_manifest(folder)
    runner = ExportRunner(folder, manifest)
    runner.run(make_plan(manifest, max_length=12))
    runner.close()
    assert runner.problems == []
