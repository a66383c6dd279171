"""Made the ``.bin`` files of this directory, once, with torch 2.13.0.

    python make_torch_files.py     # in an environment with torch and numpy

Each file has ``<name>.npz`` beside it with what it holds, as PyTorch itself says
(bfloat16 as its bits).
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def keep(name: str, value, expected: dict[str, torch.Tensor], **options) -> None:
    torch.save(value, HERE / f"{name}.bin", **options)
    arrays = {
        key: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).detach().numpy()
        for key, t in expected.items()
    }
    np.savez(HERE / f"{name}.npz", **arrays)


def main() -> None:
    torch.manual_seed(0)
    plain = {
        "decoder.fc.weight": torch.randn(5, 3),
        "decoder.fc.bias": torch.randn(5),
        "decoder.step": torch.tensor(7),
        "decoder.empty": torch.zeros(0, 4),
    }
    keep("plain", plain, plain)
    keep("protocol4", plain, plain, pickle_protocol=4)
    keep("legacy", plain, plain, _use_new_zipfile_serialization=False)
    half = {
        "decoder.a.weight": torch.randn(4, 4).half(),
        "decoder.b.weight": torch.randn(4, 4).bfloat16(),
        "decoder.c.weight": torch.randn(4, 4).double(),
    }
    keep("sixteen_bits", half, half)
    keep("legacy_bits", half, half, _use_new_zipfile_serialization=False)
    base = torch.randn(6, 8)
    views = {
        "decoder.whole": base,
        "decoder.transposed": base.T,
        "decoder.part": base[2:4, 1:7:2],
        "decoder.column": base[:, 3],
    }
    keep("views", views, views)
    module = torch.nn.Module()
    module.decoder = torch.nn.Linear(3, 2)
    keep("module", module.state_dict(), dict(module.state_dict()))
    parameters = OrderedDict(module.named_parameters())
    keep("parameters", parameters, dict(parameters))
    fused = torch.randn(12, 4)
    layer = "decoder.layers.0.self_attn"
    metaseq = {
        "decoder.version": torch.tensor([3.0]),
        "decoder.layer_norm.weight": torch.randn(4),
        "decoder.project_in_dim.weight": torch.randn(4, 2),
        f"{layer}.qkv_proj.weight": fused,
        f"{layer}.qkv_proj.bias": torch.arange(12.0),
    }
    k, v, q = fused.chunk(3)
    expected = {
        "decoder.final_layer_norm.weight": metaseq["decoder.layer_norm.weight"],
        "decoder.project_in.weight": metaseq["decoder.project_in_dim.weight"],
        f"{layer}.k_proj.weight": k,
        f"{layer}.v_proj.weight": v,
        f"{layer}.q_proj.weight": q,
        f"{layer}.k_proj.bias": torch.arange(0.0, 4.0),
        f"{layer}.v_proj.bias": torch.arange(4.0, 8.0),
        f"{layer}.q_proj.bias": torch.arange(8.0, 12.0),
    }
    keep("metaseq", {"model": metaseq, "epoch": 3, "args": None}, expected)
    torch.save(
        {"decoder.x": torch.ones(1).expand(1000, 1000)}, HERE / "refused_expanded.bin"
    )
    torch.save({"decoder.x": torch.device("cpu")}, HERE / "refused_device.bin")


if __name__ == "__main__":
    main()
