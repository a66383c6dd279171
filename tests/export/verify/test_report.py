"""What several judges say of one output, as one."""

from __future__ import annotations

from optserve.export.verify.report import Output, merged


def output(name: str, cases: int, largest: float, mean: float, agreement: float | None):
    worst = f"at {largest}"
    return Output("decode", name, cases, largest, mean, 0.5, agreement, worst, "int8")


def test_the_worse_of_two_judges_counts():
    one = output("logits", 5, 0.1, 0.04, 1.0)
    other = output("logits", 3, 0.3, 0.02, 0.9)
    assert merged([one, other]) == [
        Output("decode", "logits", 5, 0.3, 0.04, 0.5, 0.9, "at 0.3", "int8")
    ]
    assert merged([other, one]) == merged([one, other])


def test_different_outputs_stay_apart():
    both = [output("logits", 5, 0.1, 0.04, 1.0), output("new_cache", 5, 0.3, 0.2, None)]
    assert merged(both) == both
    assert merged([]) == []
