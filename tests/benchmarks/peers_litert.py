"""Google's models for LiteRT, as a peer of the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from protocol import Prompts, Runner

PARTS = {"prefill_128": 128, "decode": 1}  # tokens that the signatures take


def convert(which: str, checkpoint: Path, cache: Path) -> None:
    """In a process of its own: the converter brings TensorFlow and PyTorch."""
    file = cache / f"litert-torch-{which}.tflite"
    if not file.exists():
        script = Path(__file__).with_name("litert_convert.py")
        command = [sys.executable, script, *which.rsplit("-", 1), checkpoint, file]
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)


def engine(which: str, checkpoint: Path, cache: Path, threads: int) -> Runner:
    """LiteRT with a model that Google's converter wrote; see ``litert_convert.py``.

    The prompt goes through the prefill signature but for its last token, for that
    signature gives no logits. Every step writes the whole cache, into the buffers that
    the next one reads: it is never copied.
    """
    from importlib.metadata import version

    import numpy as np
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, Options

    file = cache / f"litert-torch-{which}.tflite"
    model = CompiledModel.from_file(
        str(file), options=Options(cpu_options=CpuOptions(num_threads=threads))
    )
    about = {name: model.get_input_tensor_details(name) for name in PARTS}
    caches = {k: d["shape"] for k, d in about["decode"].items() if "kv_cache" in k}
    inputs = {
        name: {
            key: model.create_input_buffer_by_name(name, key)
            for key in about[name].keys() - caches
        }
        for name in PARTS
    }
    now, after = (
        {key: model.create_input_buffer_by_name("decode", key) for key in caches}
        for _ in range(2)
    )
    for key, shape in caches.items():  # a masked slot must not hold NaN
        now[key].write(np.zeros(shape, np.float32))
        after[key].write(np.zeros(shape, np.float32))
    logits = model.create_output_buffer_by_name("decode", "logits")
    vocabulary = int(model.get_output_tensor_details("decode")["logits"]["shape"][-1])

    def run(name: str, tokens: list[int], start: int) -> None:
        nonlocal now, after
        fed = np.zeros((1, PARTS[name]), np.int32)
        fed[0, : len(tokens)] = tokens
        positions = np.arange(start, start + PARTS[name], dtype=np.int32)
        values = {"tokens": fed, "input_pos": positions}
        if "mask" in about[name]:
            seen = np.arange(about[name]["mask"]["shape"][-1]) <= positions[:, None]
            values["mask"] = np.where(seen, 0, -1e9).astype(np.float32)
        for key, buffer in inputs[name].items():
            buffer.write(values[key])
        more = {"logits": logits} if name == "decode" else {}
        model.run_by_name(name, inputs[name] | now, after | more)
        now, after = after, now

    def generate(prompts: Prompts, tokens: int) -> None:
        for *prompt, token in prompts:
            for start in range(0, len(prompt), PARTS["prefill_128"]):
                chunk = prompt[start : start + PARTS["prefill_128"]]
                run("prefill_128", chunk, start)
            for position in range(len(prompt), len(prompt) + tokens):
                run("decode", [token], position)
                token = int(logits.read(vocabulary, np.float32).argmax())

    return Runner(f"{version('ai-edge-litert')}, {version('litert-torch')}", generate)
