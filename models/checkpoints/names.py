"""One name for a weight, whatever wrote it: PyTorch's without the ``model.`` prefix.

    decoder.layers.0.self_attn.q_proj.weight      dense weights are [out, in]

TensorFlow says ``…/decoder/layers.0/self_attn/q_proj/kernel:0``, Flax
``model/decoder/layers/0/self_attn/q_proj/kernel``, both of them [in, out]. Metaseq,
where OPT was trained, has some names of its own, and one tensor for three projections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from .errors import CorruptFile, quoted
from .mapped import Tensor

FILE_NAMES = {
    "safetensors": "model.safetensors",
    "bin": "pytorch_model.bin",
    "h5": "tf_model.h5",
    "msgpack": "flax_model.msgpack",
}
"""Each format's file, most preferred first; shards are numbered and have an index."""

_LEAVES = {
    "kernel": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
}
_METASEQ = {
    "project_in_dim": "project_in",
    "project_out_dim": "project_out",
    "layer_norm": "final_layer_norm",
}
_FUSED = ("k_proj", "v_proj", "q_proj")  # metaseq's order


def canonical_name(name: str) -> str | None:
    """The canonical name, None for a name that carries no weight.

    A name that is not OPT's comes back as it is, for the caller to report.
    """
    parts = re.split(r"[./]", name.removesuffix(":0"))
    roots = [i for i, part in enumerate(parts) if part in ("decoder", "lm_head")]
    root = max(roots, default=-1)
    if root < 0 or ("/" not in name and parts[:root] not in ([], ["model"])):
        return name
    parts = parts[root:]
    if parts == ["decoder", "version"]:
        return None
    if parts == ["decoder", "output_projection", "weight"]:
        return "lm_head.weight"
    if parts[0] == "decoder" and len(parts) == 3:
        parts[1] = _METASEQ.get(parts[1], parts[1])
    parts[-1] = _LEAVES.get(parts[-1], parts[-1])
    return ".".join(parts)


def is_transposed(name: str) -> bool:
    """Whether a stored name means a dense weight kept as [in, out]."""
    return re.split(r"[./]", name.removesuffix(":0"))[-1] == "kernel"


def canonical_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """A stored tensor under its canonical name: none, one, or three if it was fused."""
    name = canonical_name(tensor.name)
    if name is None:
        return
    if is_transposed(tensor.name):
        tensor = replace(
            tensor, shape=tensor.shape[::-1], read=lambda read=tensor.read: read().T
        )
    if ".self_attn.qkv_proj." not in name:
        yield replace(tensor, name=name)
        return
    rows, odd = divmod(tensor.shape[0] if tensor.shape else 1, 3)
    if odd:
        raise CorruptFile(
            f"{quoted(tensor.name)} of shape {tensor.shape} should hold three "
            "projections, its first size is not a multiple of 3"
        )
    for i, projection in enumerate(_FUSED):
        part = slice(i * rows, (i + 1) * rows)
        yield replace(
            tensor,
            name=name.replace("qkv_proj", projection),
            shape=(rows, *tensor.shape[1:]),
            read=lambda read=tensor.read, part=part: read()[part],
        )


def stored_name(
    name: str, format: str, *, base_model: bool = False
) -> tuple[str, bool]:
    """The name that ``format`` writes, and whether the tensor goes in transposed.

    ``base_model`` leaves out the causal LM's ``model`` level, as
    Transformers' classes without a head do (their TensorFlow files have it all the
    same).
    """
    *path, leaf = name.split(".")
    module = path[-1] if path else ""
    if format == "safetensors":
        return (
            name if base_model or path[:1] != ["decoder"] else f"model.{name}"
        ), False
    norm, table = module.endswith("layer_norm"), module.startswith("embed_")
    dense = leaf == "weight" and not norm and not table
    if format == "h5":
        if norm:
            leaf = {"weight": "gamma", "bias": "beta"}.get(leaf, leaf)
        elif table:
            leaf = "embeddings" if module == "embed_positions" else leaf
        parts = ["/".join(path).replace("/layers/", "/layers."), leaf]
        root = "tfopt_model/model" if base_model else "tfopt_for_causal_lm/model"
        if path[0] != "decoder":
            root = root.removesuffix("/model")
    else:
        if norm:
            leaf = {"weight": "scale"}.get(leaf, leaf)
        elif table:
            leaf = {"weight": "embedding"}.get(leaf, leaf)
        parts = [*path, leaf]
        root = "" if base_model or path[0] != "decoder" else "model"
    if dense:
        parts[-1] = "kernel"
    joined = "/".join([root, *parts] if root else parts)
    return (f"{joined}:0" if format == "h5" else joined), dense
