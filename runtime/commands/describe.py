"""``optserve describe``: what a served model is, and whether it is ready."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..contract import Manifest, signature
from ..printable import json_text, sentence
from .connection_arguments import add_connection, opened_client


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_connection(parser)
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the manifest."""
    with opened_client(args) as client:
        manifest, version = client.describe(), client.model_version
    if args.json:
        print(json_text({"version": version, **asdict(manifest)}, indent=1))
    else:
        print(_text(manifest, version))
    return 0


def _text(manifest: Manifest, version: int) -> str:
    config, layout = manifest.config, manifest.cache_layout
    lines = [
        ("model", f"{config.get('_name_or_path') or config.get('model_type', 'opt')}"),
        ("version", f"{version}, contract {manifest.contract_version}"),
        ("graph", f"{manifest.framework}, compiler {manifest.compiler}"),
        (
            "shape",
            f"{layout.layers} layers, {layout.heads} heads of {layout.head_dim}, "
            f"vocabulary {manifest.vocab_size}, {manifest.max_positions} positions",
        ),
        ("weights", manifest.weights_dtype),
        ("activations", manifest.activations.get("dtype", "")),
        ("cache", f"{manifest.cache_dtype}, {layout.row_bytes:,} bytes per token"),
        ("sessions", _sessions(manifest.sessions)),
        ("prompt sizes", _sizes(manifest.prompt_buckets)),
        ("cache sizes", _sizes(manifest.cache_buckets)),
        ("batch sizes", _sizes(manifest.batch_sizes)),
        ("tokenizer", "in the export" if manifest.tokenizer else "not in the export"),
        ("checkpoint", manifest.checkpoint_digest or "unknown"),
        (
            "exported with",
            ", ".join(f"{k} {v}" for k, v in manifest.tool_versions.items()),
        ),
    ]
    width = max(len(name) for name, _ in lines)
    text = [f"{name:<{width}}  {sentence(value)}" for name, value in lines if value]
    text += ["", "signatures"]
    for name in manifest.signatures:
        text.append("  " + sentence(_signature(name, manifest)))
    return "\n".join(text)


def _sessions(sizes: dict[str, int]) -> str:
    return f"{sizes['slots']} of {sizes['positions']} positions" if sizes else "none"


def _sizes(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) if sizes else "any"


def _signature(name: str, manifest: Manifest) -> str:
    try:
        spec = signature(name, manifest.cache_layout, vocab_size=manifest.vocab_size)
    except KeyError:
        return name
    inputs = ", ".join(tensor.name for tensor in spec.inputs)
    outputs = ", ".join(tensor.name for tensor in spec.outputs)
    return f"{name}({inputs}) -> {outputs}"
