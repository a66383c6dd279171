"""What an export was seen to do, and its way from the process that saw it to another.

The export and the source model take turns: each in a process of its own, so that no
more than one of them is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Answer

_ARRAYS = "answers.npz"


@dataclass
class Observation:
    """Changed files, else the answer to each test case of the plan, and what is wrong
    with them beyond numbers."""

    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    answers: list[Answer | None] = field(default_factory=list)
    seconds: float = 0.0

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the arrays into a folder; the rest is returned, as plain data."""
        arrays = {
            f"{i}/{b}/{name}": value
            for i, answer in enumerate(self.answers)
            for b, row in enumerate(answer or [])
            for name, value in row.items()
        }
        with (folder / _ARRAYS).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return {
            "files": self.files,
            "problems": self.problems,
            "rows": [
                None if answer is None else len(answer) for answer in self.answers
            ],
            "seconds": self.seconds,
        }

    @classmethod
    def load(cls, folder: Path, data: Mapping[str, Any]) -> Observation:
        """The inverse of :meth:`save`."""
        answers: list[Any] = [
            None if rows is None else [{} for _ in range(rows)] for rows in data["rows"]
        ]
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            for key in arrays.files:
                case, row, name = key.split("/")
                answers[int(case)][int(row)][name] = arrays[key]
        return cls(data["files"], data["problems"], answers, data["seconds"])
