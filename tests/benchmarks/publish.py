"""A run's figures in the pages: a page of its own and, of the size that the README
shows, its table and plot."""

from __future__ import annotations

import re
from pathlib import Path

from . import report
from .figures import Run
from .plot import plot

ROOT = Path(__file__).parents[2]
RESULTS = "tests/benchmarks/results"
INDEX = "tests/benchmarks/README.md"
README_PRESET = "125m"


def readme_block(run: Run, plot_link: str) -> str:
    """What stands between the README's marks."""
    return (
        f"{run.title}. Generated weights, greedy; ours through gRPC with the cache\n"
        "explicit in every call (`litert` in process), the peers in process. Compare "
        "within the table only.\n\n"
        f"{report.summary(run)}\n\n"
        f"![tokens per second, ours and the peers']({plot_link})\n"
    )


def index(results: Path) -> str:
    """A line for each run that has a page in the folder."""
    pages = sorted(results.glob("*.md"))
    lines = [page.read_text().partition("\n")[0].lstrip("# ") for page in pages]
    return "".join(
        f"- [{line}]({results.name}/{page.name})\n"
        for page, line in zip(pages, lines, strict=True)
    )


def publish(run: Run, root: Path = ROOT) -> list[Path]:
    """Write the run with all its tables and, of 125m, the README's block and plot.

    There is a page for each size and kind of processor, which its name and the last of
    its instruction sets tell: one name may stand for many in a cloud.

    Returns the files. Raises ``ValueError`` if a page has no place for it.
    """
    shown = _show(run, root) if run.preset == README_PRESET else []
    kind = f"{run.machine['cpu']} {run.machine['features'].split()[-1]}"
    name = re.sub(r"[^a-z0-9]+", "-", f"{kind} {run.preset}".lower())
    results = root / RESULTS
    results.mkdir(parents=True, exist_ok=True)
    data, page = results / f"{name}.json", results / f"{name}.md"
    run.save(data)
    page.write_text(report.details(run))
    (root / INDEX).write_text(_between(root / INDEX, "results", index(results)))
    return [*shown, data, page, root / INDEX]


def _show(run: Run, root: Path) -> list[Path]:
    readme, picture = root / "README.md", root / ".github" / "benchmark.svg"
    text = _between(readme, "benchmark", readme_block(run, ".github/benchmark.svg"))
    plot(picture, run)
    readme.write_text(text)
    return [readme, picture]


def _between(page: Path, mark: str, block: str) -> str:
    """The page's text with ``block`` between the comments of this name."""
    marks = re.compile(rf"(<!-- {mark}[^>]*-->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    text, count = marks.subn(
        lambda match: match[1] + block + match[2], page.read_text()
    )
    if count != 1:
        raise ValueError(f"{page} has no one pair of the marks of {mark}")
    return text
