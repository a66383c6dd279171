"""The engines by name: what ours are exports of, and the commands that start them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optserve.runtime.model_dir import version_folders

from .process import Engine

HERE = Path(__file__).parent
_JAX = "--framework jax"
_XLA = "--framework tf --compiler xla"
# Activations that are chosen by default for a checkpoint whose tokenizer knows words,
# unlike the generated one's; and a cache that is a quarter as large on the wire.
_INT8 = "--weights int8 --activations int8 --cache int8"
_LITERT = "--target tflite --cache-size 256"
OURS = {
    # name: (export options, how it is reached)
    "optserve-int8": (_INT8, "grpc"),
    # A slot for each of 64 callers: no cache travels.
    "optserve-sessions-int8": (f"{_INT8} --sessions 64 --session-slots 512", "grpc"),
    "optserve-float32": ("--weights float32", "grpc"),
    "optserve-bfloat16": ("--weights bfloat16", "grpc"),
    "optserve-xla-int8": (f"{_XLA} {_INT8}", "grpc"),
    "optserve-xla-float32": (f"{_XLA} --weights float32", "grpc"),
    "optserve-jax-int8": (f"{_JAX} {_INT8}", "grpc"),
    "optserve-jax-float32": (f"{_JAX} --weights float32", "grpc"),
    # One row is all that int4 is meant for.
    "optserve-jax-int4": ("--framework jax --batch-sizes 1 --weights int4", "grpc"),
    "optserve-litert-int8": (f"{_LITERT} --weights int8", "litert"),
    "optserve-litert-float32": (f"{_LITERT} --weights float32", "litert"),
}
PEERS = (
    "ctranslate2-int8",
    "ctranslate2-float32",
    "openvino-int8",
    "openvino-int4",
    "openvino-float32",
    "openvino-paged-int8",
    "openvino-paged-int4",
    "torch-bfloat16",
    "torch-float32",
    "torchao-int8",
    "onnxruntime-float32",
    "litert-torch-opt-int8",
    "litert-torch-opt-float32",
    "litert-torch-smollm-135m-int8",
    "litert-torch-smollm-135m-float32",
    "transformers-tf",
    "transformers-flax",
)
_SMOLLM_PARAMETERS = 134_515_008  # of the only engines that run another model
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}


class PreparationError(Exception):
    """An export or a conversion failed, with its last words."""


@dataclass(frozen=True)
class Setup:
    """Where things are, and what runs them."""

    work: Path
    preset: str = "125m"
    threads: int = 2
    peer_python: str = sys.executable
    litert_python: str = sys.executable
    serving_binary: str | None = None
    server_flags: tuple[str, ...] = ()


def engine(name: str, setup: Setup, checkpoint: Path) -> Engine:
    """An engine that is exported or converted already."""
    size = sum(p.stat().st_size for p in checkpoint.glob("*.safetensors"))
    parameters = _SMOLLM_PARAMETERS if "smollm" in name else size // 4
    dtype = next((d for d in _BYTES if d in name), "float32")
    weights = int(parameters * _BYTES[dtype])
    if name in PEERS:
        return Engine(name, _peer(name, setup, checkpoint), weight_bytes=weights)
    _, mode = OURS[name]
    target = "{target}" if mode == "grpc" else str(_out(name, setup))
    command = our_worker(mode, target, setup.threads)
    if mode != "grpc":
        return Engine(name, command, weight_bytes=weights)
    shown = f"{name}@tfserving" if setup.serving_binary else name
    return Engine(shown, command, _server(name, setup), weights)


def our_worker(mode: str, target: str, threads: int) -> list[str]:
    """The command that asks our client."""
    return [sys.executable, str(HERE / "workers.py"), mode, target, str(threads)]


def prepare(
    name: str, setup: Setup, checkpoint: Path, progress: Callable[[str], None]
) -> None:
    """Export or convert what is not there yet."""
    if name in PEERS:
        progress(f"converting for {name}")
        _run([*_peer(name, setup, checkpoint), "prepare"])
        return
    out = _out(name, setup)
    if not version_folders(out):  # a refused export may leave an empty folder
        progress(f"exporting {out}")
        options, _ = OURS[name]
        command = [sys.executable, "-m", "optserve.runtime.cli", "export"]
        _run([*command, str(checkpoint), str(out), *options.split(), "--no-verify"])


def make_checkpoint(setup: Setup, progress: Callable[[str], None]) -> Path:
    """A generated checkpoint in Hugging Face layout, tokenizer files included."""
    path = setup.work / f"opt-{setup.preset}"
    if not path.exists():
        progress(f"generating {path}")
        partial = setup.work / f".opt-{setup.preset}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        module = "optserve.models.examples.random_checkpoint"
        _run([sys.executable, "-m", module, setup.preset, str(partial)])
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


def _out(name: str, setup: Setup) -> Path:
    """One folder for each set of options: engines may share an export."""
    options, _ = OURS[name]
    return setup.work / ("export " + options).replace(" ", "_").replace("--", "")


def _peer(name: str, setup: Setup, checkpoint: Path) -> list[str]:
    python = setup.peer_python
    if name.startswith("litert-torch"):
        python = setup.litert_python
    where = [str(checkpoint), str(setup.work), str(setup.threads)]
    return [python, str(HERE / "peers.py"), name, *where]


def _server(name: str, setup: Setup) -> list[str]:
    out, threads = str(_out(name, setup)), str(setup.threads)
    if setup.serving_binary:
        compiled = _XLA in OURS[name][0] or "jax" in name
        flags = ["--xla_cpu_compilation_enabled=true"] * compiled
        script = str(HERE / "stock_server.py")
        command = [sys.executable, script, setup.serving_binary, out, threads]
        return [*command, *flags, *setup.server_flags]
    serve = [sys.executable, "-m", "optserve.runtime.cli", "serve", out]
    flags = ["--port", "0", "--json-ready", "--intra-op-threads", threads]
    return [*serve, *flags, *setup.server_flags]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        said = last[0] if last else f"exit code {done.returncode}"
        raise PreparationError(f"{' '.join(command[1:4])} failed: {said}")
