"""Checks of calls that a framework compiles, and of what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from .conformance import feature
from .kinds import ONE_LAYER, close, padded, tokens
from .loading import loaded, shared

COMPILED, ERRORS = "Compiled", "Errors"


# --- compiled -----------------------------------------------------------------------


@feature(COMPILED, "`tf.function`, also with unknown shapes", "tf")
def graph(kind, base):
    import tensorflow as tf

    for name in (ONE_LAYER, "post-LN, projections"):
        model, config = shared(kind, base, name)
        spec = tf.TensorSpec([None, None], tf.int32)
        f = tf.function(lambda i, m, model=model: model(i, attention_mask=m))
        any_shape = tf.function(f, input_signature=[spec, spec])
        for B, S in ((2, 5), (3, 7)):
            ids, mask = tokens(config, B, S), np.ones([B, S], np.int32)
            mask[0, :2] = 0
            expected = kind.value(model, ids, attention_mask=mask)
            ids = ids.astype(np.int32)
            close(any_shape(ids, mask)[0], expected)
        output = f(tf.constant(ids), tf.constant(mask))
        close(output[kind.main], expected)
        step = tf.function(lambda i, p, model=model: model(i, past_key_values=p))
        first = model(ids[:, :4])
        actual = step(tf.constant(ids[:, 4:]), first.past_key_values)
        close(actual[0], kind.value(model, ids)[:, 4:])


@feature(COMPILED, "XLA (`jit_compile=True`)", "tf")
def xla(kind, base):
    import tensorflow as tf

    model, config = shared(kind, base, ONE_LAYER)
    ids, mask = tokens(config, 2, 6), padded([6, 3], 6, "left").astype(np.int32)
    f = tf.function(
        lambda i, m: model(i, attention_mask=m, output_hidden_states=True),
        jit_compile=True,
    )
    output = f(tf.constant(ids), tf.constant(mask))
    expected = kind.value(model, ids, attention_mask=mask)
    close(output[kind.main], expected)
    if kind.head:
        loss = tf.function(lambda i: model(i, labels=i).loss, jit_compile=True)
        close(loss(tf.constant(ids)), model(ids, labels=ids).loss)


@feature(COMPILED, "`jax.jit`", "flax")
def jit(kind, base):
    import jax

    model, config = shared(kind, base)
    ids, mask = tokens(config, 4, 9), padded([9, 5, 1, 3], 9, "left")
    f = jax.jit(lambda p, i, m: model(i, attention_mask=m, params=p))
    output = f(model.params, ids, mask)
    close(output[kind.main], kind.value(model, ids, attention_mask=mask))
    step = jax.jit(
        lambda i, m, p, c: model(i, m, p, past_key_values=c, return_dict=False)
    )
    full, cache = np.ones([4, 12], int), model.init_cache(4, 12)
    whole = kind.value(model, ids)
    for s in range(3):
        at = np.full([4, 1], s)
        actual, cache = step(ids[:, s : s + 1], full, at, cache)
        close(actual, whole[:, s : s + 1])


@feature(COMPILED, "`jax.vmap` and `jax.pmap`", "flax")
def maps(kind, base):
    import jax

    model, config = shared(kind, base, ONE_LAYER)
    ids = tokens(config, 4, 9)
    expected = kind.value(model, ids)
    actual = jax.vmap(lambda i: model(i[None])[0][0])(ids)
    close(actual, expected)
    close(jax.pmap(lambda i: model(i)[0])(ids[None])[0], expected)
    stacked = jax.tree.map(lambda x: np.stack([x, x]), model.params)
    both = jax.vmap(lambda p: model(ids, params=p)[0])(stacked)
    close(both, np.stack([expected, expected]))


@feature(COMPILED, "`jax.export` and `jax2tf`, with symbolic shapes", "flax")
def exported(kind, base):
    import jax
    import jax.numpy as jnp
    from jax import export

    model, config = shared(kind, base, ONE_LAYER)
    B, S = export.symbolic_shape("b, s")
    program = export.export(jax.jit(lambda i: model(i)[0]))(
        jax.ShapeDtypeStruct((B, S), jnp.int32)
    )
    ids = tokens(config, 4, 9).astype(np.int32)
    again = export.deserialize(program.serialize())
    close(again.call(ids), kind.value(model, ids))


@feature(COMPILED, "`.module` is a `flax.linen` module", "flax")
def module(kind, base):
    import flax.linen as nn
    import jax

    model, config = shared(kind, base, ONE_LAYER)
    assert isinstance(model.module, nn.Module)
    ids = tokens(config, 4, 9)
    actual = jax.jit(model.module.apply)({"params": model.params}, ids)
    close(actual[0], kind.value(model, ids))
    key = jax.random.PRNGKey(0)
    fresh = jax.eval_shape(model.module.init, key, ids)["params"]
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, model.params)


@feature(COMPILED, "a decoding loop in `lax.scan`, the cache carried along", "flax")
def decoding_loop(kind, base):
    import jax
    import jax.numpy as jnp

    model, config = shared(kind, base)
    ids = tokens(config, 4, 9)
    full = jnp.ones([4, 12], int)

    def step(carry, column):
        cache, at = carry
        positions = jnp.full([4, 1], at)
        output = model(column[:, None], full, positions, past_key_values=cache)
        return (output.past_key_values, at + 1), output[0][:, 0]

    start = (model.init_cache(4, 12), jnp.int32(0))
    _, actual = jax.jit(lambda s, i: jax.lax.scan(step, s, i))(start, ids.T)
    close(actual.swapaxes(0, 1), kind.value(model, ids))


@feature(COMPILED, "SavedModels: Keras's `export`, `saved_model=True`", "tf")
def exported_by_keras(kind, base, tmp_path):
    import tensorflow as tf

    model, config = loaded(kind, base)
    path = tmp_path / "saved_model" / "3"
    if kind.head:  # which calls the other
        model.save_pretrained(tmp_path, saved_model=True, version=3, token=None)
    else:
        model.export(str(path), verbose=False)
    loaded_again = tf.saved_model.load(str(path))
    for B, S in ((2, 5), (3, 4)):
        ids, mask = tokens(config, B, S), padded([S, 2, 1][:B], S, "left")
        inputs = {"input_ids": ids, "attention_mask": mask}
        given = {k: tf.constant(v, tf.int32) for k, v in inputs.items()}
        actual = loaded_again.serve(given)
        close(actual[kind.main], kind.value(model, ids, attention_mask=mask))


@feature(COMPILED, "inside another Keras model, with a tape", "tf")
def nested(kind, base):
    import keras
    import tensorflow as tf

    model, config = loaded(kind, base)
    ids = tf.constant(tokens(config, 2, 5), tf.int32)

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = model
            self.dense = keras.layers.Dense(1)

        def call(self, ids, training=False):
            return self.dense(self.inner(ids, training=training)[0])

    outer = Outer()
    i = keras.Input([None], dtype="int32")
    functional = keras.Model(i, outer.dense(model(i)[kind.main]))
    close(functional(ids), outer(ids))
    weights = len(model.trainable_variables)
    for whole in (outer, functional):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(whole(ids, training=True) ** 2)
        grads = tape.gradient(value, [v.value for v in whole.trainable_variables])
        assert len(grads) == weights + 2 and all(g is not None for g in grads)


@feature(COMPILED, "Keras functional API", "tf")
def functional(kind, base):
    import keras

    model, config = loaded(kind, base, "pre-LN")
    ids, mask = tokens(config, 2, 5), padded([5, 3], 5, "right")
    i = keras.Input([None], dtype="int32", name="input_ids")
    m = keras.Input([None], dtype="int32", name="attention_mask")
    expected = kind.value(model, ids, attention_mask=mask)
    for output in (
        model(i, attention_mask=m),
        model([i, m]),
        model({"input_ids": i, "attention_mask": m}),
    ):
        last = output[kind.main]
        assert last.shape == (None, None, expected.shape[-1])
        functional = keras.Model([i, m], keras.layers.Activation("linear")(last))
        actual = functional([ids.astype(np.int32), mask.astype(np.int32)])
        close(actual, expected)
        assert len(functional.trainable_variables) == len(model.trainable_variables)
    options = {"output_hidden_states": True, "output_attentions": True}
    for form in (True, False):  # the whole output, as a dict and as a tuple
        functional = keras.Model(i, model(i, return_dict=form, **options))
        actual, expected = functional(ids.astype(np.int32)), model(ids, **options)
        close(actual[0], expected[0])
        close(actual[2][0], expected.hidden_states[0])
        close(actual[3][1], expected.attentions[1])


# --- errors -------------------------------------------------------------------------


def _raises(run, *parts):
    with pytest.raises(Exception) as caught:
        run()
    for part in parts:
        assert part in str(caught.value)


@feature(ERRORS, "ids out of range: the limit is named, eager and compiled")
def wrong_ids(kind, base):
    model, config = loaded(kind, base)
    for bad in (config.vocab_size, -1):
        ids = np.array([[4, bad]])
        _raises(lambda ids=ids: model(ids), "vocab_size 61")
        _raises(lambda ids=ids: _compiled(kind, model)(ids), "vocab_size 61")


def _compiled(kind, model, **inputs):
    if kind.framework == "tf":
        import tensorflow as tf

        return tf.function(lambda ids: model(ids, **inputs)[0])
    import jax

    return lambda ids: jax.block_until_ready(
        jax.jit(lambda i: model(i, **inputs)[0])(ids)
    )


@feature(ERRORS, "positions out of range: the limit is named, eager and compiled")
def wrong_positions(kind, base):
    model, config = shared(kind, base, ONE_LAYER)
    ids = tokens(config, 1, config.max_position_embeddings + 1)
    limit = "max_position_embeddings 32"
    _raises(lambda: model(ids), limit)
    _raises(lambda: _compiled(kind, model)(ids), limit)
    mask = np.ones_like(ids)
    mask[:, 0] = 0  # as many tokens as there are positions
    assert np.isfinite(kind.value(model, ids, attention_mask=mask)).all()
    if kind.name != "TFOPTModel":
        for bad in (32, -2):
            positions = np.array([[0, bad]])
            _raises(lambda p=positions: model(ids[:, :2], position_ids=p), limit)
        again = np.arange(ids.shape[1])[None] % 32  # any length, in positions there are
        assert np.isfinite(kind.value(model, ids, position_ids=again)).all()


@feature(ERRORS, "shapes that do not fit are refused with what was expected")
def wrong_shapes(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 2, 4)
    _raises(lambda: model(ids[0]), "shape (B, S)")
    _raises(lambda: model(ids.astype(np.float32) + 0.5), "int32 or int64")
    for shape in ([2, 3], [1, 4], [4], [2, 1, 4]):
        _raises(lambda s=shape: model(ids, attention_mask=np.ones(s)), "(2, 4)")
    if kind.framework == "flax":
        cache = model.init_cache(2, 6)
        _raises(lambda: model(ids, past_key_values=cache), "position_ids", "(2, 6)")
        _raises(lambda: model(ids, past_key_values={}), "init_cache")
        _raises(lambda: model(ids[:1], past_key_values=cache), "hold 2 rows")
        _raises(lambda: model.init_cache(2, 99), "max_position_embeddings 32")
        _raises(
            lambda: model(
                np.tile(ids, 2), np.ones([2, 6]), np.ones([2, 8]), None, cache
            ),
            "2 rows of 6 tokens",
        )
    else:
        _raises(lambda: model(ids, past_key_values=[]), "2 layers")
        if kind.head:
            bad = np.full([2, 4], 61)
            _raises(lambda: model(ids, labels=bad), "labels should", "vocab_size 61")
            _raises(lambda: model(ids, labels=ids[:, 1:]), "labels should", "(2, 4)")
        bad = [np.zeros([2, 2, 1, 4, 8], np.float32)] * 2
        _raises(lambda: model(ids, past_key_values=bad), "(B, 3, T, 8)")
        _raises(lambda: model({"ids": ids}), "unknown input 'ids'")
        _raises(lambda: model(ids, head_mask=np.ones([3, 2])), "(2, 3)")
        _raises(lambda: model(attention_mask=np.ones([2, 4])), "input_ids")
        _raises(
            lambda: model(ids, inputs_embeds=np.ones([2, 4, 24], np.float32)),
            "inputs_embeds",
        )
