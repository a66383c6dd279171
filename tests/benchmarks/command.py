"""``optserve bench``: ours against the peers, on generated weights, in one run."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from optserve.runtime.model_dir import version_folders
from rich.console import Console

from . import report
from .measure import (
    Case,
    Engine,
    Figure,
    measure,
    memory_bandwidth,
    our_engine,
    peer_engines,
)
from .peers import ENGINES as PEERS
from .peers import SMOLLM_PARAMETERS

# Sizes to compile for; fewer than by default, so that a server is ready soon.
SIZES = "--batch-sizes 1,8 --cache-buckets 128,192,256,1024"
TF = f"--framework tf --compiler xla {SIZES}"
OURS = {
    # name: (export options, how it is reached)
    "optserve-int8": (f"{TF} --weights int8 --cache int8", "grpc"),
    "optserve-float32": (f"{TF} --weights float32", "grpc"),
    "optserve-bfloat16": ("--framework tf --compiler none --weights bfloat16", "grpc"),
    "optserve-jax-int8": (
        f"--framework jax {SIZES} --prompt-buckets 1,128,1024 --weights int8",
        "grpc",
    ),
    "optserve-int8-inprocess": (f"{TF} --weights int8 --cache int8", "inprocess"),
    "optserve-litert-int8": (
        "--target tflite --weights int8 --cache-size 256",
        "litert",
    ),
    "optserve-litert-float32": (
        "--target tflite --weights float32 --cache-size 256",
        "litert",
    ),
}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--preset", default="125m", help="125m, 350m, 1.3b, …")
    parser.add_argument(
        "--engines",
        default="optserve-int8,optserve-float32",
        help=f"comma-separated, of {', '.join([*OURS, *PEERS])}; or all",
    )
    parser.add_argument("--prompts", default="128", help="prompt lengths, e.g. 128,900")
    parser.add_argument("--batches", default="1", help="rows, e.g. 1,8")
    parser.add_argument("--tokens", type=int, default=65, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", help="also measure the server at HOST:PORT")
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument(
        "--litert-python",
        default=sys.executable,
        help="the interpreter that has litert-torch, for the engines of that name",
    )
    parser.add_argument("--restart", action="store_true", help="new processes a round")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="write a plot here (.svg, .png)")
    parser.add_argument("--markdown", type=Path, help="write the table here")


def run(args: argparse.Namespace) -> int:
    """Prepare what is missing, measure, report."""
    console = Console(stderr=True)
    names = [*OURS, *PEERS] if args.engines == "all" else args.engines.split(",")
    unknown = [name for name in names if name not in OURS and name not in PEERS]
    if unknown:
        console.print(f"optserve: no engine {unknown[0]!r}; see optserve bench --help")
        return 2
    args.work /= args.preset  # what was made of one preset's weights is not another's
    args.work.mkdir(parents=True, exist_ok=True)
    cases = [
        Case(int(prompt), int(batch), args.tokens)
        for prompt in args.prompts.split(",")
        for batch in args.batches.split(",")
    ]
    with console.status("preparing") as status:
        checkpoint = _checkpoint(args.preset, args.work, status.update)
        engines = [_engine(n, args, checkpoint, status.update) for n in names]
        if args.target:
            engines.append(
                our_engine(f"optserve@{args.target}", "grpc", args.target, args.threads)
            )
        bandwidth = memory_bandwidth(args.threads)
        results = list(
            measure(
                engines,
                cases,
                rounds=args.rounds,
                logs=args.work,
                keep_alive=not args.restart,
                progress=status.update,
            )
        )
        bandwidth = max(bandwidth, memory_bandwidth(args.threads))
    return _report(args, engines, results, bandwidth)


def _report(
    args: argparse.Namespace,
    engines: list[Engine],
    results: list[tuple[Figure, str]],
    bandwidth: float,
) -> int:
    figures = [figure for figure, _ in results]
    versions = {figure.engine: version for figure, version in results}
    table = report.markdown(
        figures, bandwidth, {e.name: e.weight_bytes for e in engines}
    )
    facts = {
        "preset": args.preset,
        "threads": args.threads,
        "rounds": args.rounds,
        "bandwidth_bytes_per_second": bandwidth,
    }
    machine = report.machine()
    title = (
        f"OPT-{args.preset} shapes, {args.threads} threads, {machine['cpu']}, "
        f"{bandwidth / 1e9:.0f} GB/s"
    )
    print(f"{title}\n\n{table}")
    if args.markdown:
        args.markdown.write_text(f"{title}\n\n{table}", encoding="utf-8")
    if args.json:
        report.write_json(args.json, figures, versions, facts)
    if args.plot:
        report.plot(args.plot, figures, title)
    return 1 if any(figure.error for figure in figures) else 0


def _checkpoint(preset: str, work: Path, progress) -> Path:
    """A generated checkpoint in Hugging Face layout, tokenizer files included."""
    path = work / f"opt-{preset}"
    if not path.exists():
        progress(f"generating {path}")
        partial = work / f".opt-{preset}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        module = "optserve.models.examples.random_checkpoint"
        _run([sys.executable, "-m", module, preset, partial])
        write_placeholder_tokenizer(partial)
        partial.rename(path)
    return path


def write_placeholder_tokenizer(directory: Path) -> None:
    """A vocabulary of the right size: converters of the peers insist on one."""
    if (directory / "vocab.json").exists():
        return
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocab |= {f"w{i}": i for i in range(4, 50265)}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "bos_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "</s>",
        "tokenizer_class": "GPT2Tokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _engine(name: str, args: argparse.Namespace, checkpoint: Path, progress) -> Engine:
    size = sum(p.stat().st_size for p in checkpoint.glob("*.safetensors"))
    parameters = SMOLLM_PARAMETERS if "smollm" in name else size // 4
    if name in PEERS:
        litert = name.startswith("litert-torch")
        python = args.litert_python if litert else args.peer_python
        (engine,) = peer_engines([name], python, checkpoint, args.work, args.threads)
    else:
        options, mode = OURS[name]
        out = args.work / ("export " + options).replace(" ", "_").replace("--", "")
        if not version_folders(out):  # a refused export may leave an empty folder
            progress(f"exporting {out}")
            command = [sys.executable, "-m", "optserve.runtime.cli", "export"]
            _run([*command, checkpoint, out, *options.split(), "--no-verify"])
        engine = our_engine(
            name, mode, "{target}" if mode == "grpc" else str(out), args.threads
        )
        if mode == "grpc":
            command = [sys.executable, "-m", "optserve.runtime.cli", "serve", str(out)]
            flags = [
                "--port",
                "0",
                "--json-ready",
                "--intra-op-threads",
                str(args.threads),
            ]
            engine = Engine(name, engine.command, ours=True, server=[*command, *flags])
    dtype = next((d for d in BYTES if d in name), "float32")
    return Engine(
        name, engine.command, engine.ours, engine.server, parameters * BYTES[dtype]
    )


def _run(command: list) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise OSError(f"{command[2]} failed: {last[0] if last else done.returncode}")
