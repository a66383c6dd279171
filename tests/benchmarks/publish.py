"""A run's figures in the pages: the README's table and plot, and all of them."""

from __future__ import annotations

import re
from pathlib import Path

from . import report
from .figures import Run
from .plot import plot

ROOT = Path(__file__).parents[2]
RESULTS = "tests/benchmarks/results"
_BLOCK = re.compile(r"(<!-- benchmark[^>]*-->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def readme_block(run: Run, plot_link: str) -> str:
    """What stands between the README's marks."""
    return (
        f"{run.title}. Generated weights, greedy; ours through gRPC with the cache\n"
        "explicit in every call (`litert` in process), the peers in process. Compare "
        "within the table only.\n\n"
        f"{report.summary(run)}\n\n"
        f"![tokens per second, ours and the peers']({plot_link})\n"
    )


def publish(run: Run, root: Path = ROOT) -> list[Path]:
    """Write the README's block, the plot, and the run with all its tables.

    Returns the files. Raises ``ValueError`` if the README has no place for it.
    """
    readme, picture = root / "README.md", root / ".github" / "benchmark.svg"
    block = readme_block(run, ".github/benchmark.svg")
    text, count = _BLOCK.subn(lambda m: m[1] + block + m[2], readme.read_text())
    if count != 1:
        raise ValueError(f"{readme} has no one pair of the marks of a benchmark")
    name = re.sub(r"[^a-z0-9]+", "-", f"{run.machine['cpu']} {run.preset}".lower())
    results = root / RESULTS
    results.mkdir(parents=True, exist_ok=True)
    data, page = results / f"{name}.json", results / f"{name}.md"
    run.save(data)
    page.write_text(report.details(run))
    plot(picture, run)
    readme.write_text(text)
    return [readme, picture, data, page]
