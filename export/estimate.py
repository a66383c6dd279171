"""What an export would be and need, from the configuration alone.

Nothing is loaded and nothing is written, so that a 66b export can be planned anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.config import OPTConfig
from ..models.presets import PRESETS
from ..runtime.contract import MESSAGE_LIMIT, signature
from .errors import ExportError
from .footprint import (
    GIB,
    cache_layout,
    held_bytes,
    parameter_count,
    serving_bytes,
    session_bytes,
    tflite_bytes,
    weights_bytes,
)
from .options import ExportOptions
from .savedmodel.exporter import call_sizes, session_sizes, signature_names
from .tflite.exporter import chosen_sizes
from .verify.plan import MOST_CACHE

TOOLS_BYTES = int(0.6 * GIB)
"""What TensorFlow takes by itself."""
JAX_BYTES = int(0.15 * GIB)
"""What JAX takes besides, where its programs are written."""
GRAPH_BYTES = int(0.003 * GIB)
"""What a layer takes in the graphs of all signatures, traced or loaded."""
PROGRAM_BYTES = int(0.05 * GIB)
"""What a layer takes more where XLA compiles it, for all sizes that are tried."""
LITERT_BYTES = int(0.1 * GIB)
"""What LiteRT takes by itself."""


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes; ``signatures`` maps names to inputs and outputs as text.

    ``export_memory`` is the peak of the process that writes, ``verify_memory`` of the
    one that verifies when that has ended; ``server_memory`` one server's with a single
    version and one row.
    ``session_memory``, part of it, is what the sessions' slots take when they are full.
    ``message_tokens`` is how many tokens' cache rows fit one gRPC message of 2 GiB.
    """

    parameters: int
    artefact: int
    export_memory: int
    verify_memory: int
    server_memory: int
    session_memory: int
    cache_row: int
    full_cache: int
    message_tokens: int
    signatures: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def read_config(checkpoint: str | Path) -> OPTConfig:
    """The configuration of a checkpoint, or of a published size by its name.

    ``66b``, ``opt-66b`` and ``facebook/opt-66b`` name a size unless they are a folder.

    Raises:
        ExportError: neither.
    """
    if Path(checkpoint).exists():
        return OPTConfig.from_pretrained(checkpoint)
    name = str(checkpoint).rpartition("/")[2].removeprefix("opt-")
    if name not in PRESETS:
        raise ExportError(
            f"{str(checkpoint)!r} is neither a folder with a config.json nor one of "
            f"{', '.join(PRESETS)}"
        )
    return OPTConfig.preset(name)


def estimate_savedmodel(config: OPTConfig, options: ExportOptions) -> Estimate:
    """Sizes for a configuration and the options of a SavedModel's export."""
    weights, cache = options.weights, options.cache
    values: Mapping[str, Any] = config.to_dict()
    layout = cache_layout(values, cache)
    stored = weights_bytes(values, weights)
    largest = 4 * config.vocab_size * config.embed_dim
    positions = config.max_position_embeddings
    call_sizes(config, options)  # refuses what an export would refuse
    sessions = session_sizes(config, options)
    fixed = TOOLS_BYTES + GRAPH_BYTES * config.num_hidden_layers
    # One long sequence's cache and the token table: in files, in graphs, as copies to
    # compare and multiply. Measured with int8 weights, GiB to write (planned): 125m
    # 0.82 (1.04), as a JAX graph 1.02 (1.23), 350m 1.05 (1.18), 1.3b 1.96 (2.68); to
    # verify 125m 1.55 (2.30).
    tried = min(MOST_CACHE, positions * cache_layout(values).row_bytes)
    working = 6 * (tried + largest)
    programs = 0
    if options.compiler == "xla":  # and what is compiled is in the graphs twice
        fixed += JAX_BYTES + GRAPH_BYTES * config.num_hidden_layers
        programs = PROGRAM_BYTES * config.num_hidden_layers
    return Estimate(
        parameters=parameter_count(values).total,
        artefact=stored,
        # The checkpoint is read tensor by tensor, the largest converted as a copy.
        export_memory=stored + 2 * largest + fixed,
        verify_memory=held_bytes(values, weights) + working + programs + fixed,
        server_memory=serving_bytes(
            values,
            weights=weights,
            cache=cache,
            versions=1,
            rows=1,
            sessions=sessions,
        ),
        session_memory=session_bytes(layout, sessions),
        cache_row=layout.row_bytes,
        full_cache=layout.row_bytes * positions,
        message_tokens=MESSAGE_LIMIT // layout.row_bytes,
        signatures={
            name: _tensors(name, layout, config.vocab_size, config.embed_dim)
            for name in signature_names(options)
        },
    )


@dataclass(frozen=True)
class EdgeEstimate:
    """As :class:`Estimate`, of a TFLite export. ``device_memory`` is what running it
    takes, ``full_cache`` included."""

    parameters: int
    artefact: int
    export_memory: int
    verify_memory: int
    device_memory: int
    cache_row: int
    full_cache: int
    signatures: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def estimate_tflite(config: OPTConfig, options: ExportOptions) -> EdgeEstimate:
    """Sizes for a configuration and the options of a TFLite export.

    Raises:
        ExportError: sizes that the model does not have.
    """
    weights = options.weights
    buckets, cache_size = chosen_sizes(
        config, options.prompt_buckets, options.cache_size
    )
    values: Mapping[str, Any] = config.to_dict()
    layout = cache_layout(values)
    stored = tflite_bytes(values, weights)
    cache = layout.row_bytes * cache_size
    # Packed for the kernels, once for each signature; float16 becomes float32 for it.
    packed = stored * (1 + len(buckets)) * (2 if weights == "float16" else 1)
    device = stored + packed + 3 * cache + LITERT_BYTES
    table = 4 * config.vocab_size * config.embed_dim
    signatures = {"decode": 1, **{f"prefill_{S}": S for S in buckets}}
    return EdgeEstimate(
        parameters=parameter_count(values).total,
        artefact=stored,
        export_memory=3 * table + TOOLS_BYTES,
        verify_memory=device + 4 * table + TOOLS_BYTES,
        device_memory=device,
        cache_row=layout.row_bytes,
        full_cache=cache,
        signatures={
            name: _edge_tensors(config, S, cache_size) for name, S in signatures.items()
        },
    )


def _edge_tensors(config: OPTConfig, S: int, C: int) -> dict[str, str]:
    L, H, D = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    inputs = [f"input_ids int32[1,{S}]", "cache_length int32[1]"]
    inputs += ["input_length int32[1]"] if S > 1 else []
    inputs += [f"key_0…{L - 1} and value_0…{L - 1} float32[1,{H},{C},{D}]"]
    outputs = [
        f"logits float32[1,{config.vocab_size}]",
        f"new_cache float32[1,{S},{L},2,{H},{D}]",
    ]
    return {"inputs": ", ".join(inputs), "outputs": ", ".join(outputs)}


def _tensors(name, layout, vocab_size: int, width: int) -> dict[str, str]:
    spec = signature(name, layout, vocab_size=vocab_size, hidden_size=width)

    def text(tensors) -> str:
        return ", ".join(
            f"{t.name} {t.dtype}[{','.join(map(str, t.shape))}]" for t in tensors
        )

    return {"inputs": text(spec.inputs), "outputs": text(spec.outputs)}
