"""Which weights a configuration has: canonical names, shapes, and what is wrong with a
mapping that should hold them.

Canonical names are PyTorch's without the ``model.`` prefix; dense weights are
[out, in].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .config import POSITION_OFFSET, OPTConfig

Shape = tuple[int, ...]


class WeightsError(ValueError):
    """Weights that do not fit the model; every one of them is named in the message."""


def weight_shapes(config: OPTConfig, *, head: bool = True) -> dict[str, Shape]:
    """Name and shape of every weight, in the order the model uses them.

    ``head`` asks for ``lm_head.weight`` too, which only an untied model has.
    """
    E, F, W = config.hidden_size, config.ffn_dim, config.embed_dim
    shapes: dict[str, Shape] = {
        "decoder.embed_tokens.weight": (config.vocab_size, W),
        "decoder.embed_positions.weight": (
            config.max_position_embeddings + POSITION_OFFSET,
            E,
        ),
    }

    def dense(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if config.enable_bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str) -> None:
        if config.layer_norm_elementwise_affine:
            shapes[f"{name}.weight"] = (E,)
            shapes[f"{name}.bias"] = (E,)

    if config.has_projections:
        shapes["decoder.project_in.weight"] = (E, W)
    for i in range(config.num_hidden_layers):
        layer = f"decoder.layers.{i}"
        norm(f"{layer}.self_attn_layer_norm")
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            dense(f"{layer}.self_attn.{projection}", E, E)
        norm(f"{layer}.final_layer_norm")
        dense(f"{layer}.fc1", F, E)
        dense(f"{layer}.fc2", E, F)
    if config.has_final_norm:
        norm("decoder.final_layer_norm")
    if config.has_projections:
        shapes["decoder.project_out.weight"] = (W, E)
    if head and not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, W)
    return shapes


def params_from_weights(config: OPTConfig, weights: Mapping[str, Any]) -> dict:
    """The nested form of ``weights`` that the pure functions take.

        {"embed_tokens", "embed_positions", "project_in",
         "layers": [{"self_attn_layer_norm", "q_proj", "k_proj", "v_proj", "out_proj",
                     "final_layer_norm", "fc1", "fc2"}, …],
         "final_layer_norm", "project_out", "lm_head"}

    The two tables are arrays, everything else a dict of ``weight`` and ``bias``, where
    what the architecture lacks is None. Leaves are taken as they are.
    """

    def pair(name: str) -> dict[str, Any]:
        return {
            "weight": weights.get(f"{name}.weight"),
            "bias": weights.get(f"{name}.bias"),
        }

    def layer(i: int) -> dict[str, Any]:
        at = f"decoder.layers.{i}"
        projections = ("q_proj", "k_proj", "v_proj", "out_proj")
        return {
            "self_attn_layer_norm": pair(f"{at}.self_attn_layer_norm"),
            **{name: pair(f"{at}.self_attn.{name}") for name in projections},
            "final_layer_norm": pair(f"{at}.final_layer_norm"),
            "fc1": pair(f"{at}.fc1"),
            "fc2": pair(f"{at}.fc2"),
        }

    return {
        "embed_tokens": weights["decoder.embed_tokens.weight"],
        "embed_positions": weights["decoder.embed_positions.weight"],
        "project_in": pair("decoder.project_in"),
        "layers": [layer(i) for i in range(config.num_hidden_layers)],
        "final_layer_norm": pair("decoder.final_layer_norm"),
        "project_out": pair("decoder.project_out"),
        "lm_head": pair("lm_head"),
    }


def check_weights(
    expected: Mapping[str, Shape],
    stored: Mapping[str, Shape],
    *,
    source: object,
    ignore_mismatched_sizes: bool = False,
    ignore_missing: bool = False,
) -> set[str]:
    """Compare names and shapes; the expected names that ``stored`` can give.

    A head that the model does not want (tied, or no head at all) is not an extra.
    Raises :class:`WeightsError` listing all missing, extra and mis-shaped weights.
    ``ignore_mismatched_sizes`` leaves mis-shaped ones out instead, ``ignore_missing``
    missing ones.
    """
    misshaped = [
        name for name in expected if name in stored and stored[name] != expected[name]
    ]
    missing = [name for name in expected if name not in stored]
    extra = [n for n in stored if n not in expected and n != "lm_head.weight"]
    faults = [
        *_listed("missing", [] if ignore_missing else missing),
        *_listed("extra", extra),
    ]
    if not ignore_mismatched_sizes:
        faults += _listed(
            "mis-shaped",
            (f"{n} (expected {expected[n]}, got {stored[n]})" for n in misshaped),
        )
    if faults:
        raise WeightsError(
            f"{source} does not hold the weights of this configuration: "
            + "; ".join(faults)
        )
    return set(expected) - set(misshaped) - set(missing)


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"{len(names)} {kind}: {', '.join(names)}"] if names else []


class PackedWeight:
    """A weight that is not a plain array: quantised, or stored the other way round.

    Subclasses stand wherever a dense weight [out, in] or a table [rows, width] may.
    """

    def matmul(self, x: Any) -> Any:
        """``x`` [N, in] times the weight: [N, out]."""
        raise NotImplementedError

    def take(self, rows: Any) -> Any:
        """The table's ``rows``, each of its width."""
        raise NotImplementedError


class PackedNorm:
    """A layer norm's weight and bias together, for a kernel that takes both.

    Stands where a norm's weight may.
    """

    def __call__(self, x: Any) -> Any:
        """``x`` [N, E] normed over its last axis."""
        raise NotImplementedError
