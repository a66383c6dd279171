"""How far an export's numbers may be from its source's, for each type of weights.

Errors are relative to the root mean square of the expected tensor (at least 1 for
log-probabilities), because a rounding of all weights shifts every number by a share of
what numbers there are, large or small. Those seen are of commit 034ec83 on x86-64;
``optserve verify OUT --report FILE`` writes those of an export.
"""

from __future__ import annotations

from ...runtime.contract import Manifest

EXACT = {
    "float32": 1e-4,  # seen: 7.3e-6
    "float16": 0.01,  # 2.9e-3
    "bfloat16": 0.12,  # 0.051
    "int8": 0.3,  # 0.13
    "int4": 3.0,  # 1.3; 0.42 on a trained model
}
"""Largest error against the source with its weights as they are. Seen: the worst of the
test checkpoints (3 layers, random), the shipped one and a random one of 125m. What few
bits lose depends on the checkpoint, so nothing tight can be said here."""
ROUNDED = {
    "float32": 1e-4,  # seen: 7.3e-6
    "float16": 1e-4,  # 4.1e-6
    "bfloat16": 0.08,  # 0.038
    "int8": 0.08,  # 0.033
}
"""Largest error against the source with its weights rounded as the export's are: what
computing loses. With bfloat16 and int8 weights TensorFlow multiplies activations that
are rounded to bfloat16; JAX stays in float32 (seen: 4.5e-6 with int8)."""
EDGE_ROUNDED = {**ROUNDED, "int8": 0.15, "int4": 0.15}  # seen: 0.057 and 0.068
"""The same for LiteRT, which rounds activations to int8."""
CACHE = {"float32": 0.0, "bfloat16": 0.04, "int8": 0.12}  # seen: 0.015 and 0.051
"""What a cache of another type adds to either."""
INT8_ACTIVATIONS = 0.25  # seen, int8 cache, random 125m: 0.24; in 7 bits 0.30 in all
"""What activations rounded to int8 add to either."""
MEAN_SHARE = 0.15
"""The mean error allowed, as a share of the largest (seen: 0.25 where the largest is
far below its limit): a bug shifts many numbers."""


def programs_alone(manifest: Manifest) -> bool:
    """Whether programs of JAX compute all of an export, in float32."""
    unmixed = manifest.weights_dtype in ("float16", "int4")
    portable = unmixed or bool(manifest.export_options.get("portable"))
    return manifest.framework == "jax" and portable


def tolerance(
    manifest: Manifest, *, source: str = "float32", edge: bool = False
) -> float:
    """The largest error allowed for an export.

    Args:
        manifest: the export's.
        source: the type that the source's weights were rounded to.
        edge: whether it is a TFLite file.
    """
    kind = manifest.weights_dtype
    if source == "float32":
        allowed = EXACT[kind]
    elif edge:
        allowed = EDGE_ROUNDED[kind]
    else:
        allowed = ROUNDED["float32" if programs_alone(manifest) else kind]
    if manifest.activations.get("dtype") == "int8":
        allowed += INT8_ACTIVATIONS
    return allowed + CACHE[manifest.cache_dtype]
