"""Errors of an export's answers, as numbers, JSON and a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...runtime.printable import json_text, sentence
from .answers import Answer
from .plan import Plan, TestCase
from .tolerances import MEAN_SHARE

_BLOCK = 1 << 20  # numbers


@dataclass
class Output:
    """One output of one signature, over all test cases.

    ``source`` is the type that the source's weights were rounded to before they were
    compared with, empty where the other side is an export. ``agreement`` is the share
    of equal greedy choices, None for outputs that choose nothing. ``tolerance`` None:
    shown, not judged.
    """

    signature: str
    output: str
    cases: int
    max_error: float
    mean_error: float
    tolerance: float | None
    agreement: float | None
    worst: str
    source: str = ""

    @property
    def ok(self) -> bool:
        """Whether the errors are within the tolerance."""
        if self.tolerance is None:
            return True
        mean_allowed = MEAN_SHARE * self.tolerance
        return self.max_error <= self.tolerance and self.mean_error <= mean_allowed


def merged(outputs: Iterable[Output]) -> list[Output]:
    """One of each signature, output and source: the worse of what judges say."""
    by_key: dict[tuple[str, str, str], Output] = {}
    for output in outputs:
        key = output.signature, output.output, output.source
        by_key[key] = _worse(by_key[key], output) if key in by_key else output
    return list(by_key.values())


def _worse(one: Output, other: Output) -> Output:
    shares = [o.agreement for o in (one, other) if o.agreement is not None]
    return replace(
        max(one, other, key=lambda output: output.max_error),
        cases=max(one.cases, other.cases),
        mean_error=max(one.mean_error, other.mean_error),
        agreement=min(shares, default=None),
    )


@dataclass
class Report:
    """What a verification came to; ``ok`` is the verdict."""

    export: str
    digest: str
    made_of: str
    kind: str
    against: str = ""
    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)  # nats per token of a text
    greedy: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0  # bytes, the most that the command held

    @property
    def ok(self) -> bool:
        """No changed file, no problem, every error within its tolerance."""
        wrong = self.files or self.problems
        return not wrong and all(output.ok for output in self.outputs)

    @property
    def agreement(self) -> float | None:
        """Share of equal greedy choices over all outputs that choose."""
        shares = [
            o.agreement
            for o in self.outputs
            if o.agreement is not None and o.source in ("", "float32")
        ]
        return float(np.mean(shares)) if shares else None

    def seen(self, plan: Plan, observed: list[Answer | None]) -> None:
        """Keep what tells one behaviour from another: mean scores, greedy tokens."""
        for case, answer in zip(plan.cases, observed, strict=True):
            label = f"{case.signature} {case}"
            if answer and case.signature == "score":
                values = np.concatenate([row["logprobs"] for row in answer])
                if values.size:
                    self.scores[label] = round(float(values.mean()), 6)
            elif answer and "tokens" in answer[0]:
                tokens = np.concatenate([row["tokens"] for row in answer])
                self.greedy[label] = tokens.tolist()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """From the fields as plain data."""
        return cls(**{**data, "outputs": [Output(**o) for o in data["outputs"]]})

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain data, with its verdict."""
        verdict = {"ok": self.ok, "greedy_agreement": self.agreement}
        return {**verdict, **asdict(self)}

    def to_json(self) -> str:
        """The same as JSON; numbers that are not finite become null."""
        return json_text(dict(sorted(self.to_dict().items())), indent=1)


def measure(
    plan: Plan,
    observed: list[Answer | None],
    expected: list[Answer | None],
    allowed: float,
    source: str = "",
) -> list[Output]:
    """Errors of ``observed`` against ``expected``, by signature and output.

    ``allowed`` and ``source`` go into each :class:`Output`.
    """
    errors_of: dict[tuple[str, str], list[_Error]] = defaultdict(list)
    for case, ours, theirs in zip(plan.cases, observed, expected, strict=True):
        if ours is None or theirs is None:
            continue
        for got, should_be in zip(ours, theirs, strict=True):
            for name, error in _errors(got, should_be).items():
                error.case = case
                errors_of[case.signature, name].append(error)
    outputs = [_output(*key, errors, allowed) for key, errors in errors_of.items()]
    return [replace(output, source=source) for output in outputs]


@dataclass
class _Error:
    largest: float
    mean: float
    agreement: float | None = None
    judged: bool = True
    case: TestCase | None = None


def _errors(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, _Error]:
    errors = {}
    common = None  # tokens that two exports generated alike, before the first other one
    if "tokens" in got:
        if "regret" in expected:
            errors["tokens"] = _regret(expected["regret"], expected["logits"])
        else:
            common = _common(got["tokens"], expected["tokens"])
            longest = max(len(got["tokens"]), len(expected["tokens"]))
            errors["tokens"] = _Error(0.0, 0.0, common / longest, judged=False)
    for name in got.keys() & expected.keys() - {"tokens"}:
        mine, theirs = got[name], expected[name]
        if common is not None:
            # Rows of the cache are of tokens fed, log-probabilities of those generated.
            fed = len(mine) - len(got["tokens"]) + common
            keep = common if name.endswith("logprobs") else max(fed, 0)
            mine, theirs = mine[:keep], theirs[:keep]
        if mine.size:
            errors[name] = _difference(name, mine, theirs)
    return dict(sorted(errors.items()))


def _difference(name: str, got: np.ndarray, expected: np.ndarray) -> _Error:
    if got.shape != expected.shape:
        return _Error(float("inf"), float("inf"))
    scale = max(_rms(expected), 1.0 if name.endswith("logprobs") else 1e-6)
    largest = total = 0.0
    for mine, theirs in zip(_blocks(got), _blocks(expected), strict=True):
        difference = np.abs(mine - theirs) / scale
        if not np.isfinite(difference).all():
            return _Error(float("inf"), float("inf"))
        largest = max(largest, float(difference.max()))
        total += float(difference.sum())
    agreement = None
    if name == "logits":
        agreement = float(np.mean(got.argmax(-1) == expected.argmax(-1)))
    return _Error(largest, total / expected.size, agreement)


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of ``array`` as doubles, a part at a time: all of a long sequence's
    logits take gigabytes."""
    flat = array.reshape(-1)
    for at in range(0, flat.size, _BLOCK):
        yield flat[at : at + _BLOCK].astype(np.float64)


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(sum(np.dot(b, b) for b in _blocks(array)) / array.size))


def _regret(regret: np.ndarray, logits: np.ndarray) -> _Error:
    scale = max(_rms(logits), 1e-6)
    share = regret / scale
    return _Error(float(share.max()), float(share.mean()), float(np.mean(regret == 0)))


def _common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length


def _output(name: str, output: str, errors: list[_Error], allowed: float) -> Output:
    worst = max(errors, key=lambda error: error.largest)
    shares = [e.agreement for e in errors if e.agreement is not None]
    return Output(
        signature=name,
        output=output,
        cases=len({error.case for error in errors}),
        max_error=worst.largest,
        mean_error=float(np.mean([error.mean for error in errors])),
        tolerance=allowed if worst.judged else None,
        agreement=float(np.mean(shares)) if shares else None,
        worst=str(worst.case),
    )


def show(report: Report, console: Any) -> None:
    """Print a report as a table on a rich console."""
    from rich.markup import escape
    from rich.table import Table

    console.print(sentence(f"export {report.export}: {report.kind}"), markup=False)
    if report.outputs:
        console.print(sentence(f"against {report.against}"), markup=False)
        table = Table(box=None, pad_edge=False)
        for column in ("signature", "output", "source's weights"):
            table.add_column(column)
        for column in ("largest error", "mean error", "allowed", "same choice"):
            table.add_column(column, justify="right")
        table.add_column("worst at")
        for o in report.outputs:
            names = (o.signature, o.output, o.source)
            table.add_row(
                *(escape(sentence(name)) for name in names),
                f"{o.max_error:.2e}" + ("" if o.ok else " [red]✗[/]"),
                f"{o.mean_error:.2e}",
                "" if o.tolerance is None else f"{o.tolerance:g}",
                "" if o.agreement is None else f"{o.agreement:.1%}",
                escape(sentence(o.worst)),
            )
        console.print(table)
    for whose, loss in report.losses.items():
        console.print(f"{loss:.4f} nats per token of the text: {whose}", markup=False)
    if report.agreement is not None:
        console.print(f"greedy agreement {report.agreement:.2%}")
    for kind, lines in (
        ("file", report.files),
        ("problem", report.problems),
        ("note", report.notes),
    ):
        for line in lines:
            console.print(f"{kind}: {sentence(line)}", markup=False)
    verdict = "[green]verified[/]" if report.ok else "[red]NOT verified[/]"
    console.print(f"{verdict} in {report.seconds:.1f} s")
