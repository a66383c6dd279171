"""Which sizes a compiled export is compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.contract import ROWS_LIMIT
from ..errors import ExportError
from ..options import check_sizes

LOOP_PAGE = 128
"""Slots of a page of the cache, in a loop of the TensorFlow route that XLA compiles."""


_MOST_TOGETHER = 256
"""Tokens of a program with several rows."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that the graph rounds up to before a compiler sees them, ascending.

    Every new combination costs a compilation, so there are few. A cache of any size
    goes in pages. Where a list is empty, sizes stay as they are.
    """

    rows: tuple[int, ...] = ()
    prompt: tuple[int, ...] = ()

    def prompts_of(self, rows: int) -> tuple[int, ...]:
        """Prompt sizes that so many rows go through together.

        With more tokens than a few hundred nothing is gained by it: longer prompts go
        through by the fewest rows at a time.
        """
        if rows == min(self.rows, default=rows):
            return self.prompt
        few = tuple(size for size in self.prompt if rows * size <= _MOST_TOGETHER)
        return few or self.prompt[:1]


def chosen_sizes(
    positions: int,
    prompt: Sequence[int] | None,
    rows: Sequence[int] | None,
    *,
    framework: str = "tf",
) -> Sizes:
    """Sizes as given, or a few up to the model's ``positions``.

    Each combination is compiled before a server is ready, so the default steps are
    wide; what is computed in vain by rounding up is little beside the weights.

    Raises:
        ExportError: sizes that are not ascending numbers within the model.
    """
    if framework == "jax":
        return _chosen_for_jax(positions, prompt, rows)
    # Several rows are quicker in TensorFlow's own ops.
    return Sizes(rows=_checked_rows([1] if rows is None else rows))


def _chosen_for_jax(
    positions: int, prompt: Sequence[int] | None, rows: Sequence[int] | None
) -> Sizes:
    """Longer prompts go chunk by chunk, more rows in groups, and any cache in pages."""
    if prompt is None:
        prompt = sorted({min(size, positions) for size in (1, 32, 128)})
    return Sizes(
        rows=_checked_rows([1, 8] if rows is None else rows),
        prompt=_checked("--prompt-buckets", prompt, positions),
    )


def _checked(option: str, sizes: Sequence[int], limit: int | None) -> tuple[int, ...]:
    if not sizes:
        raise ExportError(f"{option} should name one size at least")
    check_sizes(option, sizes, limit)
    return tuple(sizes)


def _checked_rows(sizes: Sequence[int]) -> tuple[int, ...]:
    if max(sizes, default=0) > ROWS_LIMIT:
        raise ExportError(
            f"--batch-sizes should be at most {ROWS_LIMIT}, got {max(sizes)}"
        )
    return _checked("--batch-sizes", sizes, None)
