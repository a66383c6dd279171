"""Peer engines of the benchmark, each in a process of its own.

Run by path with an interpreter that has the peer installed (it need not have optserve):

    python peers.py ENGINE CHECKPOINT CACHE_DIR THREADS [prepare]

``prepare`` converts the checkpoint into the cache folder and ends; else the engine is
loaded from there and asked, as ``protocol`` says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers_litert
import peers_openvino
from protocol import Prompts, Runner, serve, take_over_stdout

Generate = Callable[[Prompts, int], None]


def ctranslate2_convert(compute_type: str, checkpoint: Path, cache: Path) -> None:
    """CTranslate2's own converter, quantised as asked."""
    folder = cache / f"ctranslate2-{compute_type}"
    if folder.exists():
        return
    tool = [sys.executable, "-m", "ctranslate2.converters.transformers"]
    command = [*tool, "--model", str(checkpoint), "--output_dir", str(folder)]
    if compute_type != "float32":
        command += ["--quantization", compute_type]
    subprocess.run(command, check=True, stdout=sys.stderr)


def ctranslate2_engine(
    compute_type: str, checkpoint: Path, cache: Path, threads: int
) -> Runner:
    """CTranslate2. Callers that come at once are one batch: it has no scheduler."""
    import ctranslate2

    folder = cache / f"ctranslate2-{compute_type}"
    model = ctranslate2.Generator(
        str(folder), device="cpu", compute_type=compute_type, intra_threads=threads
    )
    names = json.loads((folder / "vocabulary.json").read_text())

    def run(prompts: Prompts, tokens: int, **options: Any) -> None:
        results = model.generate_batch(
            [[names[i] for i in prompt] for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            **options,
        )
        assert all(len(r.sequences_ids[0]) == tokens for r in results)

    def load(prompts: Prompts, tokens: int) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in prompts]

        def note(step: Any) -> bool:
            times[step.batch_id].append(time.perf_counter())
            return False

        run(prompts, tokens, callback=note)
        return [row[-tokens:] for row in times]  # before: the rest of longer prompts

    return Runner(ctranslate2.__version__, run, load)


def hugging_face(model: Any, array: Callable, ones_like: Callable) -> Generate:
    """Greedy generation by a model with transformers' ``generate``."""
    import numpy as np

    def generate(prompts: Prompts, tokens: int) -> None:
        ids = array(prompts)
        result = model.generate(
            ids,
            attention_mask=ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        sequences = np.asarray(getattr(result, "sequences", result))
        assert sequences.shape[1] == len(prompts[0]) + tokens

    return generate


def torch_engine(dtype: str, checkpoint: Path, cache: Path, threads: int) -> Runner:
    """PyTorch through transformers' generate; int8 is torchao's, uncompiled."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    quantised = dtype == "int8"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32 if quantised else getattr(torch, dtype)
    ).eval()
    if quantised:
        from torchao import quantization

        recipe = quantization.Int8DynamicActivationInt8WeightConfig()
        quantization.quantize_(model, recipe)
    generate = hugging_face(model, torch.tensor, torch.ones_like)
    version = f"{torch.__version__}, transformers {transformers.__version__}"
    return Runner(version, torch.inference_mode()(generate))


def onnxruntime_convert(dtype: str, checkpoint: Path, cache: Path) -> None:
    """Optimum's export, with a key-value cache."""
    from optimum.onnxruntime import ORTModelForCausalLM

    if not (cache / "onnxruntime").exists():
        model = ORTModelForCausalLM.from_pretrained(checkpoint, export=True)
        model.save_pretrained(cache / "onnxruntime")


def onnxruntime_engine(
    dtype: str, checkpoint: Path, cache: Path, threads: int
) -> Runner:
    """ONNX Runtime through optimum."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(
        cache / "onnxruntime", session_options=options
    )
    generate = hugging_face(model, torch.tensor, torch.ones_like)
    return Runner(onnxruntime.__version__, generate)


def transformers_tf_engine(
    dtype: str, checkpoint: Path, cache: Path, threads: int
) -> Runner:
    """Transformers' own TensorFlow class, eager generate."""
    import tensorflow as tf
    import transformers

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # Its own reader of safetensors fails with recent versions of that package.
    model = transformers.TFOPTForCausalLM.from_pretrained(checkpoint, from_pt=True)
    generate = hugging_face(model, tf.constant, tf.ones_like)
    version = f"{tf.__version__}, transformers {transformers.__version__}"
    return Runner(version, generate)


def transformers_flax_engine(
    dtype: str, checkpoint: Path, cache: Path, threads: int
) -> Runner:
    """Transformers' own Flax class; generate compiles its loop."""
    import jax.numpy as jnp
    import transformers

    model = transformers.FlaxOPTForCausalLM.from_pretrained(checkpoint)
    generate = hugging_face(model, jnp.asarray, jnp.ones_like)
    return Runner(transformers.__version__, generate)


ENGINES: dict[str, tuple[Callable[..., Runner], str]] = {
    "ctranslate2-int8": (ctranslate2_engine, "int8"),
    "ctranslate2-float32": (ctranslate2_engine, "float32"),
    "openvino-int8": (peers_openvino.attention_engine, "int8"),
    "openvino-int4": (peers_openvino.attention_engine, "int4"),
    "openvino-float32": (peers_openvino.attention_engine, "float32"),
    "openvino-paged-int8": (peers_openvino.paged_engine, "int8"),
    "openvino-paged-int4": (peers_openvino.paged_engine, "int4"),
    "torch-bfloat16": (torch_engine, "bfloat16"),
    "torch-float32": (torch_engine, "float32"),
    "torchao-int8": (torch_engine, "int8"),
    "onnxruntime-float32": (onnxruntime_engine, "float32"),
    "litert-torch-opt-int8": (peers_litert.engine, "opt-int8"),
    "litert-torch-opt-float32": (peers_litert.engine, "opt-float32"),
    "litert-torch-smollm-135m-int8": (peers_litert.engine, "smollm-135m-int8"),
    "litert-torch-smollm-135m-float32": (peers_litert.engine, "smollm-135m-float32"),
    "transformers-tf": (transformers_tf_engine, "float32"),
    "transformers-flax": (transformers_flax_engine, "float32"),
}
CONVERTERS: dict[Callable[..., Runner], Callable[[str, Path, Path], None]] = {
    ctranslate2_engine: ctranslate2_convert,
    onnxruntime_engine: onnxruntime_convert,
    peers_litert.engine: peers_litert.convert,
    peers_openvino.attention_engine: peers_openvino.convert,
    peers_openvino.paged_engine: peers_openvino.convert,
}


def main() -> None:
    """Prepare the engine named on the command line, or load it and serve it."""
    name, checkpoint, cache, threads, *prepare = sys.argv[1:]
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # the transformers TF classes
    os.environ["OMP_NUM_THREADS"] = threads
    make, which = ENGINES[name]
    if prepare:
        if converter := CONVERTERS.get(make):
            converter(which, Path(checkpoint), Path(cache))
        return
    answers = take_over_stdout()
    serve(make(which, Path(checkpoint), Path(cache), int(threads)), answers)


if __name__ == "__main__":
    main()
