"""The figures as Markdown: the README's one table, and all of them for their page."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .figures import Case, DecodeFigure, ProcessFigure, Run

Cell = Callable[[str], str]


def summary(run: Run) -> str:
    """One table with a line for each engine, what was not measured left empty."""
    one, eight = (_decode(run, batch) for batch in (1, 8))
    processes = {process.engine: process for process in run.processes}
    load = {f.engine: f for f in sorted(run.load, key=lambda f: f.callers)}
    most = max((figure.callers for figure in run.load), default=0)
    columns: dict[str, Cell] = {
        "engine": str,
        "ready, s": lambda e: f"{processes[e].ready_seconds:.1f}",
        "CPU to ready, s": lambda e: f"{processes[e].ready_cpu_seconds:.1f}",
        "peak, GB": lambda e: f"{processes[e].peak_bytes / 1e9:.2f}",
        "settled, GB": lambda e: f"{processes[e].settled_bytes / 1e9:.2f}",
        "1 row, ms per token": lambda e: f"{one[e].step_ms:.1f}",
        "first token, ms": lambda e: f"{one[e].first_ms:.0f}",
        "8 rows, tokens/s": lambda e: f"{eight[e].tokens_per_second:.0f}",
    }
    if most:
        columns[f"{most} callers, tokens/s"] = lambda e: (
            f"{load[e].median('tokens_per_second'):.0f}"
        )
    names = sorted(
        (p.engine for p in run.processes if not p.error),
        key=lambda e: one[e].step_ms if e in one else float("inf"),
    )
    return _table(columns, names)


def details(run: Run) -> str:
    """Every figure: processes, each case, each number of callers."""
    parts = [f"## {run.title}", _processes(run)]
    for case in dict.fromkeys(figure.case for figure in run.decode):
        parts.append(_case(run, case))
    for callers in dict.fromkeys(figure.callers for figure in run.load):
        parts.append(_callers(run, callers))
    failed = [f"- {p.engine} failed: {p.error}" for p in run.processes if p.error]
    return "\n\n".join(filter(None, [*parts, "\n".join(failed)])) + "\n"


def _decode(run: Run, batch: int) -> dict[str, DecodeFigure]:
    """By engine, of the shortest prompt that was measured with so many rows."""
    figures = [f for f in run.decode if f.case.batch == batch and f.total]
    figures.sort(key=lambda f: -f.case.prompt)
    return {figure.engine: figure for figure in figures}


def _processes(run: Run) -> str:
    processes = {
        process.engine: process for process in run.processes if not process.error
    }
    columns: dict[str, Cell] = {
        "engine": str,
        "version": lambda e: processes[e].version,
        "ready, s": lambda e: f"{processes[e].ready_seconds:.1f}",
        "CPU to ready, s": lambda e: f"{processes[e].ready_cpu_seconds:.1f}",
        "peak, GB": lambda e: f"{processes[e].peak_bytes / 1e9:.2f}",
        "settled, GB": lambda e: f"{processes[e].settled_bytes / 1e9:.2f}",
    }
    return _table(columns, processes)


def _case(run: Run, case: Case) -> str:
    figures = {f.engine: f for f in run.decode if f.case == case and f.total}
    processes = {process.engine: process for process in run.processes}
    columns: dict[str, Cell] = {
        "engine": str,
        "ms per token": lambda e: f"{figures[e].step_ms:.1f}",
        "tokens/s": lambda e: f"{figures[e].tokens_per_second:.0f}",
        "first token, ms": lambda e: f"{figures[e].first_ms:.0f}",
        "of the bandwidth limit": lambda e: _share(run, processes[e], figures[e]),
        "wire, MB": lambda e: _megabytes(
            figures[e].bytes_sent + figures[e].bytes_received
        ),
    }
    rows = "1 row" if case.batch == 1 else f"{case.batch} rows"
    title = f"**prompt {case.prompt}, {rows}, {case.tokens} tokens**"
    table = _table(columns, sorted(figures, key=lambda e: figures[e].step_ms))
    return f"{title}\n\n{table}"


def _callers(run: Run, callers: int) -> str:
    figures = {
        figure.engine: figure
        for figure in run.load
        if figure.callers == callers and figure.tokens_per_second
    }

    def milliseconds(name: str) -> Cell:
        return lambda e: f"{1e3 * figures[e].median(name):.0f}"

    columns: dict[str, Cell] = {
        "engine": str,
        "tokens/s": lambda e: f"{figures[e].median('tokens_per_second'):.0f}",
        "first token p50, ms": milliseconds("first_p50"),
        "p99, ms": milliseconds("first_p99"),
        "gap p50, ms": milliseconds("gap_p50"),
        "gap p99, ms": milliseconds("gap_p99"),
    }
    by_speed = sorted(figures, key=lambda e: -figures[e].median("tokens_per_second"))
    who = "1 caller" if callers == 1 else f"{callers} callers at once"
    return f"**{who}, prompts of 32 to 256 tokens**\n\n{_table(columns, by_speed)}"


def _share(run: Run, process: ProcessFigure, figure: DecodeFigure) -> str:
    """Of the speed at which memory could give the weights, once a step."""
    limit = process.weight_bytes / (run.machine["gigabytes_per_second"] * 1e9)
    return f"{1e3 * limit / figure.step_ms:.0%}" if limit else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}" if size else ""


def _table(columns: dict[str, Cell], engines: Iterable[str]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for engine in engines:
        cells = [_cell(cell, engine) for cell in columns.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: Cell, engine: str) -> str:
    try:
        return cell(engine)
    except KeyError:  # not measured
        return ""
