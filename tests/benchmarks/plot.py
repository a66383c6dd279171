"""The README's picture: tokens per second of one row, eight rows, and many callers."""

from __future__ import annotations

from pathlib import Path

from .figures import Run

OURS, PEER = "#c2410c", "#94a3b8"  # bar colours


def panels(run: Run) -> dict[str, dict[str, float]]:
    """Title of each panel, and the tokens per second of its engines."""
    by_title: dict[str, dict[str, float]] = {}
    for figure in run.decode:
        if figure.total:
            case = figure.case
            rows = "1 row" if case.batch == 1 else f"{case.batch} rows"
            title = f"prompt {case.prompt}, {rows}, while decoding"
            by_title.setdefault(title, {})[figure.engine] = figure.tokens_per_second
    most = max((figure.callers for figure in run.load), default=0)
    for figure in run.load:
        if figure.callers == most and figure.tokens_per_second:
            title = f"{most} callers at once, prompts included"
            speed = figure.median("tokens_per_second")
            by_title.setdefault(title, {})[figure.engine] = speed
    return by_title


def plot(path: Path, run: Run) -> None:
    """Bars, ours in a colour of their own; the format follows the file's ending.

    Needs matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "optserve"
    from matplotlib import pyplot

    by_title = panels(run)
    sizes = [len(engines) for engines in by_title.values()]
    picture, axes = pyplot.subplots(
        len(by_title),
        1,
        figsize=(8, 0.3 * sum(sizes) + 0.8 * len(sizes) + 0.5),
        height_ratios=sizes,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, engines) in zip(axes[:, 0], by_title.items(), strict=True):
        names = sorted(engines, key=lambda engine: engines[engine])
        colours = [OURS if name.startswith("optserve") else PEER for name in names]
        values = [engines[name] for name in names]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, [f" {value:.0f}" for value in values], fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    axes[-1, 0].set_xlabel("tokens per second", fontsize=9)
    picture.suptitle(run.title.replace("), ", "),\n", 1), fontsize=9)
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(picture)
