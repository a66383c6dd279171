"""What the four classes do, as one table: cells are tests, lines are for the README.

    python -m tests.models.conformance      prints the table as Markdown

A feature's checks are in ``features_*.py``; a class without a check for a feature does
not have that feature, and its cell says why it cannot.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from .kinds import KINDS, Kind

Check = Callable[..., None]


@dataclass
class Feature:
    """A line of the table: which classes it is for, and the check of each."""

    group: str
    text: str
    checks: dict[str, Check] = field(default_factory=dict)


FEATURES: dict[str, Feature] = {}
MODULES = [
    "features_numbers",
    "features_calls",
    "features_compiled",
    "features_files",
    "features_training",
    "features_generation",
    "features_surface",
]

NOT_APPLICABLE = "·"


def feature(group: str, text: str, framework: str = "", head: bool | None = None):
    """Declare the decorated function as the check of a feature.

    It is called as ``check(kind, tmp_path)`` for every class, or those of one
    framework, or those with (without) a head. Several checks may share a ``text``.
    """

    def declare(check: Check) -> Check:
        line = FEATURES.setdefault(text, Feature(group, text))
        for kind in KINDS.values():
            if framework in ("", kind.framework) and head in (None, kind.head):
                assert kind.name not in line.checks, f"{text}: two checks"
                line.checks[kind.name] = check
        return check

    return declare


def load() -> dict[str, Feature]:
    """All features, by text."""
    for module in MODULES:
        import_module(f".{module}", __package__)
    return FEATURES


def cells(framework: str) -> list:
    """The checks of a framework's classes, as parameters ``(check, kind)``."""
    return [
        pytest.param(check, KINDS[name], id=f"{name}-{line.text}")
        for line in load().values()
        for name, check in line.checks.items()
        if KINDS[name].framework == framework
    ]


def run(check: Check, kind: Kind, base: Path, tmp_path: Path) -> None:
    """One cell's test; ``base`` holds the checkpoints that all of them share."""
    more = [tmp_path] if "tmp_path" in inspect.signature(check).parameters else []
    check(kind, base, *more)


def release() -> None:
    """Let go of the models and gradients that checks share."""
    from . import features_generation, features_training, loading

    loading.shared.cache_clear()
    features_generation.model_of.cache_clear()
    features_training.variant_gradients.cache_clear()


def markdown() -> str:
    """The table for the README."""
    lines = [
        "| | " + " | ".join(f"`{name}`" for name in KINDS) + " |",
        "|---|" + ":-:|" * len(KINDS),
    ]
    group = ""
    for line in load().values():
        if line.group != group:
            group = line.group
            lines.append(f"| **{group}** |" + " |" * len(KINDS))
        marks = ("✓" if name in line.checks else NOT_APPLICABLE for name in KINDS)
        lines.append(f"| {line.text} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from tests.models import conformance

    print(conformance.markdown())
