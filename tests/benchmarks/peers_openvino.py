"""OpenVINO GenAI, as a peer of the benchmark: one attention, or pages and a scheduler.

Needs openvino-genai, and to convert optimum-intel, nncf and transformers before 5.
No tokenizer is converted: prompts come as ids, and answers stay ids.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from protocol import Prompts, Runner

_INT4_GROUP = 64  # weights that share a scale; hidden sizes are multiples of it


def convert(weights: str, checkpoint: Path, cache: Path) -> None:
    """Optimum's export, and NNCF's compression of its weights."""
    folder = cache / f"openvino-{weights}"
    if folder.exists():
        return
    import nncf
    import openvino
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    partial = cache / f".openvino-{weights}.partial"
    main_export(
        str(checkpoint),
        partial,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp32"),  # else larger models get int8 unasked
    )
    if weights != "float32":
        modes: dict[str, dict[str, Any]] = {
            "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
            "int4": {
                "mode": nncf.CompressWeightsMode.INT4_ASYM,
                "group_size": _INT4_GROUP,
            },
        }
        model = openvino.Core().read_model(partial / "openvino_model.xml")
        model = nncf.compress_weights(model, **modes[weights])
        compressed = partial / "compressed.xml"
        openvino.save_model(model, compressed, compress_to_fp16=False)
        del model
        for suffix in (".xml", ".bin"):
            compressed.with_suffix(suffix).replace(partial / f"openvino_model{suffix}")
    partial.rename(folder)


def attention_engine(
    weights: str, checkpoint: Path, cache: Path, threads: int
) -> Runner:
    """``LLMPipeline`` with plain attention, which keeps nothing of earlier prompts."""
    import numpy as np
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(
        str(cache / f"openvino-{weights}"),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "ATTENTION_BACKEND": "SDPA"},
    )

    def generate(prompts: Prompts, tokens: int) -> None:
        ids = _tensor(prompts)
        ones = _tensor(np.ones_like(prompts))
        inputs = openvino_genai.TokenizedInputs(ids, ones)
        results = pipeline.generate(inputs, _greedy(tokens))
        assert all(len(row) == tokens for row in results.tokens)

    return Runner(openvino_genai.__version__, generate)


def paged_engine(weights: str, checkpoint: Path, cache: Path, threads: int) -> Runner:
    """Continuous batching, without its cache of prompts: each is computed."""
    import openvino_genai

    config = openvino_genai.SchedulerConfig()
    config.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(cache / f"openvino-{weights}"),
        config,
        "CPU",
        {"INFERENCE_NUM_THREADS": threads},
    )

    def load(prompts: Prompts, tokens: int) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in prompts]
        handles = [
            pipeline.add_request(row, _tensor([prompt]), _greedy(tokens))
            for row, prompt in enumerate(prompts)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter()
            for row, handle in zip(times, handles, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        row += [now] * len(output.generated_ids)
        assert all(len(row) == tokens for row in times)
        return times

    def generate(prompts: Prompts, tokens: int) -> None:
        load(prompts, tokens)

    return Runner(openvino_genai.__version__, generate, load)


def _greedy(tokens: int) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def _tensor(rows: Any) -> Any:
    import numpy as np
    import openvino

    return openvino.Tensor(np.ascontiguousarray(rows, np.int64))
