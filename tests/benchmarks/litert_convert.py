"""Google's own models for LiteRT, as its converter ``litert-torch`` writes them.

Run by path with an interpreter that has litert-torch and tensorflow installed:

    python litert_convert.py MODEL DTYPE CHECKPOINT OUT

``MODEL`` is ``opt``, the checkpoint through the converter's exporter for Transformers
models, or ``smollm-135m``, the converter's own example with random weights: 30 layers
of width 576, 135 M parameters. int8 is each one's default recipe, dynamic ranges.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

S, C = 128, 256  # tokens of the prefill signature, slots of the cache


def opt(dtype: str, checkpoint: Path, folder: Path) -> Path:
    """The checkpoint, whose configuration is given the names the exporter looks for."""
    from litert_torch.generative.export_hf.export import export

    source = folder / "checkpoint"
    shutil.copytree(checkpoint, source)
    config = json.loads((source / "config.json").read_text())
    heads = config["num_attention_heads"]
    config |= {"num_key_value_heads": heads, "head_dim": config["hidden_size"] // heads}
    (source / "config.json").write_text(json.dumps(config))
    export(
        str(source),
        str(folder),
        prefill_lengths=[S],
        cache_length=C,
        quantization_recipe={"int8": "dynamic_wi8_afp32", "float32": "none"}[dtype],
        bundle_litert_lm=False,
        keep_temporary_files=True,
    )
    return folder / {"int8": "model_quantized.tflite", "float32": "model.tflite"}[dtype]


def smollm(dtype: str, checkpoint: Path, folder: Path) -> Path:
    """The example's model with its recipe and its cache's layout."""
    import torch
    from litert_torch.generative.examples.smollm.smollm import SmolLM, get_model_config
    from litert_torch.generative.utilities import converter
    from litert_torch.generative.utilities.export_config import ExportConfig

    model = SmolLM(get_model_config(), mask_cache_size=C).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.02)
    path = converter.convert_to_tflite(
        model,
        output_path=str(folder),
        output_name_prefix="smollm",
        prefill_seq_len=[S],
        kv_cache_max_len=C,
        quantize={"int8": "dynamic_int8", "float32": "none"}[dtype],
        export_config=ExportConfig(),
    )
    return Path(path)


def main() -> None:
    """Convert what the command line names."""
    name, dtype, checkpoint, out = sys.argv[1:]
    make = {"opt": opt, "smollm-135m": smollm}[name]
    with tempfile.TemporaryDirectory(dir=Path(out).parent) as folder:
        converted = make(dtype, Path(checkpoint), Path(folder))
        converted.rename(out)


if __name__ == "__main__":
    main()
