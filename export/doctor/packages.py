"""Every declared requirement: its version, and the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from .check import Check

DISTRIBUTION = "optserve"
EXTRAS = ("export", "serve", "edge", "telemetry")


def check_packages(needed: tuple[str, ...] = ()) -> Iterator[Check]:
    """A check for each requirement.

    Args:
        needed: the extras that must be complete; others are noted only.
    """
    for requirement, extra in requirements():
        name, bounds = requirement.name, requirement.specifier
        label = name if extra is None else f"{name} [{extra}]"
        brings = DISTRIBUTION if extra is None else f"{DISTRIBUTION}[{extra}]"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            must = extra is None or extra in needed
            state = "failed" if must else "note"
            yield Check(label, state, "not installed", f"pip install '{brings}'")
            continue
        if bounds.contains(version, prereleases=True):
            yield Check(label, "ok", version)
        else:
            advice = f"pip install --upgrade '{brings}' (it needs {bounds})"
            yield Check(label, "failed", version, advice)


def requirements() -> list[tuple[Requirement, str | None]]:
    """The distribution's requirements for this interpreter, each with the extra that
    brings it, None for the base install."""
    requirements = []
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        extra = next((e for e in (None, *EXTRAS) if _applies(requirement, e)), "")
        if extra != "" and requirement.name != DISTRIBUTION:
            requirements.append((requirement, extra))
    return requirements


def _applies(requirement: Requirement, extra: str | None) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({"extra": extra or ""})
