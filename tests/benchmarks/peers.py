"""Peer engines of the benchmark, each in a process of its own.

Run by path with an interpreter that has the peer installed (it need not have optserve):

    python peers.py ENGINE CHECKPOINT CACHE_DIR THREADS

Prints ``{"ready": …}``, then answers each line ``{"prompt": P, "batch": B, "tokens":
N}`` with ``{"seconds": …}``: the wall time of generating exactly N tokens greedily for
B prompts of P tokens. ``peak_bytes`` is the process's largest resident size.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Generate = Callable[[list[list[int]], int], None]


def ctranslate2_engine(compute_type: str, checkpoint: Path, cache: Path, threads: int):
    """CTranslate2: converted once into the cache folder, quantised as asked."""
    import ctranslate2

    folder = cache / f"ctranslate2-{compute_type}"
    if not folder.exists():
        # In a process of its own, so that its memory isn't counted here.
        tool = [sys.executable, "-m", "ctranslate2.converters.transformers"]
        command = [*tool, "--model", str(checkpoint), "--output_dir", str(folder)]
        if compute_type != "float32":
            command += ["--quantization", compute_type]
        subprocess.run(command, check=True, stdout=sys.stderr)
    model = ctranslate2.Generator(
        str(folder), device="cpu", compute_type=compute_type, intra_threads=threads
    )
    names = json.loads((folder / "vocabulary.json").read_text())

    def generate(prompts: list[list[int]], tokens: int) -> None:
        results = model.generate_batch(
            [[names[i] for i in prompt] for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        assert all(len(r.sequences_ids[0]) == tokens for r in results)

    return generate, ctranslate2.__version__


def hugging_face(model: Any, array: Callable, ones_like: Callable) -> Generate:
    """Greedy generation by a model with transformers' ``generate``."""
    import numpy as np

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = array(prompts)
        result = model.generate(
            ids,
            attention_mask=ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        made = np.asarray(getattr(result, "sequences", result))
        assert made.shape[1] == len(prompts[0]) + tokens

    return generate


def torch_engine(dtype: str, checkpoint: Path, cache: Path, threads: int):
    """PyTorch through transformers' generate."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype)
    ).eval()
    generate = hugging_face(model, torch.tensor, torch.ones_like)
    version = f"{torch.__version__}, transformers {transformers.__version__}"
    return torch.inference_mode()(generate), version


def onnxruntime_engine(dtype: str, checkpoint: Path, cache: Path, threads: int):
    """ONNX Runtime through optimum, with a key-value cache."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    folder = cache / "onnxruntime"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not folder.exists():
        convert = (
            "import sys; from optimum.onnxruntime import ORTModelForCausalLM as Model\n"
            "model = Model.from_pretrained(sys.argv[1], export=True)\n"
            "model.save_pretrained(sys.argv[2])"
        )
        command = [sys.executable, "-c", convert, str(checkpoint), str(folder)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    generate = hugging_face(model, torch.tensor, torch.ones_like)
    return generate, onnxruntime.__version__


def transformers_tf_engine(dtype: str, checkpoint: Path, cache: Path, threads: int):
    """Transformers' own TensorFlow class, eager generate."""
    import tensorflow as tf
    import transformers

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # Its own reader of safetensors fails with recent versions of that package.
    model = transformers.TFOPTForCausalLM.from_pretrained(checkpoint, from_pt=True)
    generate = hugging_face(model, tf.constant, tf.ones_like)
    return generate, f"{tf.__version__}, transformers {transformers.__version__}"


def transformers_flax_engine(dtype: str, checkpoint: Path, cache: Path, threads: int):
    """Transformers' own Flax class; generate compiles its loop."""
    import jax.numpy as jnp
    import transformers

    model = transformers.FlaxOPTForCausalLM.from_pretrained(checkpoint)
    generate = hugging_face(model, jnp.asarray, jnp.ones_like)
    return generate, transformers.__version__


def litert_engine(which: str, checkpoint: Path, cache: Path, threads: int):
    """LiteRT with a model that Google's converter wrote; see ``litert_convert.py``.

    The prompt goes through the prefill signature but for its last token, for that
    signature gives no logits. Every step writes the whole cache, into the buffers that
    the next one reads: it is never copied.
    """
    from importlib.metadata import version

    import numpy as np
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, Options

    file = cache / f"litert-torch-{which}.tflite"
    if not file.exists():
        script = Path(__file__).with_name("litert_convert.py")
        command = [sys.executable, script, *which.rsplit("-", 1), checkpoint, file]
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)
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

    def generate(prompts: list[list[int]], tokens: int) -> None:
        for *prompt, token in prompts:
            for start in range(0, len(prompt), PARTS["prefill_128"]):
                chunk = prompt[start : start + PARTS["prefill_128"]]
                run("prefill_128", chunk, start)
            for position in range(len(prompt), len(prompt) + tokens):
                run("decode", [token], position)
                token = int(logits.read(vocabulary, np.float32).argmax())

    return generate, f"{version('ai-edge-litert')}, {version('litert-torch')}"


PARTS = {"prefill_128": 128, "decode": 1}  # tokens that LiteRT's signatures take
SMOLLM_PARAMETERS = 134_515_008  # of the only engines that run another model

ENGINES = {
    "ctranslate2-int8": (ctranslate2_engine, "int8"),
    "ctranslate2-float32": (ctranslate2_engine, "float32"),
    "torch-bfloat16": (torch_engine, "bfloat16"),
    "torch-float32": (torch_engine, "float32"),
    "onnxruntime-float32": (onnxruntime_engine, "float32"),
    "litert-torch-opt-int8": (litert_engine, "opt-int8"),
    "litert-torch-opt-float32": (litert_engine, "opt-float32"),
    "litert-torch-smollm-135m-int8": (litert_engine, "smollm-135m-int8"),
    "litert-torch-smollm-135m-float32": (litert_engine, "smollm-135m-float32"),
    "transformers-tf": (transformers_tf_engine, "float32"),
    "transformers-flax": (transformers_flax_engine, "float32"),
}


def prompts_of(length: int, batch: int) -> list[list[int]]:
    """Prompts without special ids: the engines' speed does not depend on the ids."""
    return [[4 + (7 * r + 13 * i) % 50000 for i in range(length)] for r in range(batch)]


def serve(generate: Generate, version: str) -> None:
    """Answer the benchmark's commands on standard input until it closes."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    print(json.dumps({"ready": True, "version": version}), file=say, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        prompts = prompts_of(case["prompt"], case["batch"])
        begin = time.perf_counter()
        generate(prompts, case["tokens"])
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            json.dumps({"seconds": seconds, "peak_bytes": peak}), file=say, flush=True
        )


def main() -> None:
    """Load the engine named on the command line and serve it."""
    name, checkpoint, cache, threads = sys.argv[1:]
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # the transformers TF classes
    os.environ["OMP_NUM_THREADS"] = threads
    make, dtype = ENGINES[name]
    generate, version = make(dtype, Path(checkpoint), Path(cache), int(threads))
    serve(generate, version)


if __name__ == "__main__":
    main()
