"""Which backend an export's options ask for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from ..options import ExportOptions
from . import autotune
from .autotune import Known
from .backend_tf import TFBackend
from .backends import Backend
from .buckets import Sizes


def chosen_backend(
    config: OPTConfig,
    stored: Mapping[str, tf.Variable],
    layout: CacheLayout,
    options: ExportOptions,
    sizes: Sizes,
    *,
    int8_activations: bool,
) -> Backend:
    """Plain ops, programs of JAX, or both.

    Once compiled, graphs of both frameworks have much in common: JAX's program of the
    loop for one row, and plain ops for many where those are quicker. A JAX graph has
    programs for the rest as well, and takes them wherever plain ops are not quicker.

    Args:
        config: the architecture.
        stored: the weights, as :func:`..weights.packed_weights` names them.
        layout: of the cache on the wire.
        options: the choices.
        sizes: that are compiled for; none for plain ops alone.
        int8_activations: whether products of int8 have those, where they are exact.
    """
    weights = stored["decoder.embed_tokens.weight"].dtype
    resources = autotune.questions(
        weights, portable=options.portable, pinned=options.tuned_for != "any"
    )
    plain = partial(
        TFBackend, config, stored, layout, int8_activations=int8_activations
    )
    if not sizes.rows:
        return plain(resources=resources)
    from .backend_jax import JaxBackend
    from .backend_mixed import MixedBackend
    from .loop_jax import JaxLoop

    tokens = max(options.generate, default=1)
    if options.framework == "tf":
        loop = JaxLoop(config, stored, layout, tokens=tokens, rows=sizes.rows)
        return MixedBackend(
            plain(resources=resources),
            loop,
            None,
            few=loop.sizes,
            plain_is_quicker=Known(True),
            resources=resources,
        )
    programs = partial(JaxBackend, config, stored, layout, tokens=tokens)
    quicker = autotune.plain_is_quicker(
        weights, resources, int8_activations=int8_activations
    )
    if options.programs_alone or quicker.known is False:
        return programs(sizes=sizes)
    few = _programs_are_quick(weights, sizes)
    # Plain ops are asked only where the answer is yes.
    yes = {name: Known(True) for name in resources if resources[name] is quicker}
    some = programs(sizes=few if quicker.known else sizes)
    return MixedBackend(
        plain(resources={**resources, **yes}),
        some.loop,
        some,
        few=few,
        plain_is_quicker=quicker,
        resources=resources,
    )


def _programs_are_quick(weights: tf.DType, sizes: Sizes) -> Sizes:
    """Sizes whose programs no processor's plain ops are quicker than: the smallest
    ones, and in float32 a short prompt of the fewest rows."""
    prompts = sizes.prompt if weights == tf.float32 else sizes.prompt[:1]
    return Sizes(rows=sizes.rows[:1], prompt=prompts)
