"""Types of arguments, and what is refused of those that don't go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from ..errors import InvalidRequest

Group = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to: a command's parser, or a part of it with a title."""

_SMALLEST, _LARGEST = 1e-37, 1e38  # that float32 holds with all its digits
_LONGEST = 1e9  # seconds; some 30 years


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argument's type: a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also for thousands of digits
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {low} to {high}, got {short(text)}"
            )
        return value

    return read


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argument's type: a finite number from ``low`` to ``high``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            between = f"from {low:g} to {high:g}" if math.isfinite(high) else ""
            if not between:
                between = "" if math.isinf(low) else f"of {low:g} or more"
            raise argparse.ArgumentTypeError(
                f"expected a number {between}".rstrip() + f", got {short(text)}"
            )
        return value

    return read


def float32(text: str) -> float:
    """An argument's type: 0 or more, as the graphs take it."""
    value = number(0)(text)
    if value and not _SMALLEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a number of 0, or from {_SMALLEST:g} to {_LARGEST:g}, "
            f"got {short(text)}"
        )
    return value


def short(text: str) -> str:
    """An argument as messages quote it: ASCII, and at most 40 characters of it."""
    return ascii(text if len(text) <= 40 else f"{text[:40]}…")


def given(text: str) -> str:
    """An argument's type: a text that isn't empty, as that of an unset variable is."""
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got an empty text")
    return text


seconds = number(0.001, _LONGEST)
"""An argument's type: a time to wait."""


def refuse(args: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Raise ``InvalidRequest`` for the first of the options that is given."""
    for name in names:
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            raise InvalidRequest(f"{option} {reason}")
