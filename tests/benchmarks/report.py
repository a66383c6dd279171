"""The benchmark's figures as a table, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from .measure import Case, Figure

OURS, PEER = "#c2410c", "#94a3b8"  # bar colours


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            if key.strip() == "flags":
                flags = set(value.split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "features": " ".join(f for f in wanted if f in flags),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def write_json(
    path: Path, figures: list[Figure], versions: dict[str, str], facts: dict
) -> None:
    """All measurements, for machines; atomic."""
    data = facts | {
        "machine": machine(),
        "versions": versions,
        "figures": [figure.to_json() for figure in figures],
    }
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(data, indent=1))
    os.replace(temporary, path)


def markdown(figures: list[Figure], bandwidth: float, weight_bytes: dict) -> str:
    """One table a case, fastest step first, as Markdown."""
    lines: list[str] = []
    for case in dict.fromkeys(f.case for f in figures):
        rows = [f for f in figures if f.case == case]
        lines += [
            f"**prompt {case.prompt}, {case.batch} row{'s'[: case.batch > 1]}, "
            f"{case.tokens} tokens**",
            "",
            "| engine | ms a token | tokens/s | first token, ms "
            "| of the bandwidth limit | peak memory, GB | wire, MB |",
            "|---|---|---|---|---|---|---|",
        ]
        good = [f for f in rows if f.total and not f.error]
        for figure in sorted(good, key=lambda f: f.step_ms):
            limit = weight_bytes.get(figure.engine, 0) / bandwidth * 1e3
            share = f"{limit / figure.step_ms:.0%}" if limit else ""
            wire = (figure.bytes_sent + figure.bytes_received) / 1e6
            lines.append(
                f"| {figure.engine} | {figure.step_ms:.1f} "
                f"| {figure.tokens_per_second:.0f} | {figure.ttft_ms:.0f} | {share} "
                f"| {figure.peak_bytes / 1e9:.2f} | {f'{wire:.0f}' if wire else ''} |"
            )
        lines += [f"| {f.engine} | failed: {f.error} |" for f in rows if f.error]
        lines.append("")
    return "\n".join(lines)


def plot(path: Path, figures: list[Figure], title: str) -> None:
    """Bars of tokens a second for every case; ours in a colour of their own.

    Needs matplotlib. The format follows the file's ending (SVG, PNG, PDF).
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "optserve"
    from matplotlib import pyplot

    cases: list[Case] = list(dict.fromkeys(f.case for f in figures))
    good = [f for f in figures if f.total and not f.error]
    height = 0.32 * max(1, max(sum(f.case == c for f in good) for c in cases)) + 0.9
    picture, axes = pyplot.subplots(
        len(cases), 1, figsize=(8, height * len(cases)), squeeze=False
    )
    for axis, case in zip(axes[:, 0], cases, strict=True):
        rows = sorted(
            (f for f in good if f.case == case), key=lambda f: f.tokens_per_second
        )
        colours = [OURS if f.engine.startswith("optserve") else PEER for f in rows]
        values = [f.tokens_per_second for f in rows]
        bars = axis.barh([f.engine for f in rows], values, color=colours)
        axis.bar_label(bars, [f" {v:.0f}" for v in values], fontsize=8)
        axis.set_title(
            f"prompt {case.prompt}, {case.batch} row{'s'[: case.batch > 1]}", fontsize=9
        )
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    axes[-1, 0].set_xlabel("tokens a second while decoding", fontsize=9)
    picture.suptitle(title, fontsize=10)
    picture.tight_layout()
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(picture)
