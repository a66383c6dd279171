"""Checks of option values: the right type, and a range that everything below can hold.

The graphs take int32 and float32, gRPC and the operating system take times of limited
length. A value outside would be rounded to another one, or fail much later.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from .errors import InvalidRequest

INT32_MAX = 2**31 - 1
LONGEST_SECONDS = 1e9
"""Longest time that can be asked for: 31 years."""


def check_whole(
    name: str, value: Any, least: int, most: int = INT32_MAX, hint: str = ""
) -> None:
    """Refuse what is not a whole number from ``least`` to ``most``.

    Raises:
        InvalidRequest: the message names the option.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidRequest(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or not least <= number <= most:
        upper = f"{least} or more" if most == INT32_MAX else f"{least} to {most}"
        raise InvalidRequest(f"{name} must be {hint or upper}, got {value}")


def check_number(
    name: str, value: Any, least: float, most: float, hint: str = ""
) -> None:
    """Refuse what is not a number from ``least`` to ``most``; NaN is refused.

    Raises:
        InvalidRequest: the message names the option.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{name} must be a number, got {value!r}") from None
    if not least <= number <= most:
        span = hint or f"{least:g} to {most:g}"
        raise InvalidRequest(f"{name} must be {span}, got {value}")


def check_seconds(
    name: str, value: Any, *, most: float = LONGEST_SECONDS, zero: bool = False
) -> None:
    """Refuse what is not a time: above 0 (or 0, where allowed), and not too long.

    Raises:
        InvalidRequest: the message names the option.
    """
    least = 0.0 if zero else math.ulp(0.0)
    span = f"{'0' if zero else 'above 0'} to {most:g} seconds"
    check_number(name, value, least, most, span)
