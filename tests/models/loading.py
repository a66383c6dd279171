"""What the checks have in common: models with a checkpoint's weights, and what they
should answer."""

from __future__ import annotations

from functools import cache

from . import numpy_opt
from .kinds import ONE_LAYER, checkpoint, random_weights, small_config


def loaded(kind, base, name=ONE_LAYER, **options):
    """A model with a checkpoint's weights, and its configuration."""
    model = kind.cls.from_pretrained(checkpoint(base, name), **options)
    return model, model.config


@cache
def shared(kind, base, name="pre-LN"):
    """The same, by default of two layers, once for all checks, which leave it as it
    is."""
    return loaded(kind, base, name)


def expected(config, *args, name="pre-LN", **inputs):
    """The numpy implementation's outputs with the same weights."""
    return numpy_opt.forward(
        config, random_weights(small_config(name)), *args, **inputs
    )


def native(kind, x):
    """``x`` as the framework's own array."""
    if kind.framework == "tf":
        import tensorflow as tf

        return tf.constant(x)
    import jax.numpy as jnp

    return jnp.asarray(x)
