"""One finding of the doctor's."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("ok", "note", "failed")


@dataclass(frozen=True)
class Check:
    """One finding: ``ok``, ``note`` (it may matter to you) or ``failed``."""

    name: str
    state: str
    detail: str
    advice: str = ""
