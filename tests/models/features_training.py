"""Checks of training: gradients, dropout, Keras's and JAX's loops, precision."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from .conformance import feature
from .features_files import named
from .kinds import FEW, KINDS, close, padded, small_config, tokens
from .loading import loaded, native

TRAINING = "Training"


@cache
def variant_gradients(kind, base, name) -> dict:
    """:func:`gradients` of a named configuration."""
    config = small_config(name)
    mask = padded([6, 4, 2], 6, "left")
    return gradients(kind, loaded(kind, base, name)[0], tokens(config, 3, 6), mask)


def gradients(kind, model, ids, mask) -> dict:
    """Gradients of one number made of all outputs, by canonical name."""
    if kind.framework == "tf":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            output = model(ids, attention_mask=mask, training=True)[0]
            weight = tf.cast(mask, tf.float32)[..., None]
            value = tf.reduce_sum(tf.sin(output) * weight)
        weights = model.named_weights()
        grads = tape.gradient(value, [v.value for v in weights.values()])
        return {
            name: np.asarray(tf.convert_to_tensor(grad))
            for name, grad in zip(weights, grads, strict=True)
        }
    import jax
    import jax.numpy as jnp

    def value(params):
        output = model(ids, attention_mask=mask, params=params)[0]
        return jnp.sum(jnp.sin(output) * mask[..., None])

    grads = kind.cls(model.config, _do_init=False)
    grads._params = jax.jit(jax.grad(value))(model.params)
    return named(kind, grads)


@feature(TRAINING, "gradients, equal in both frameworks")
def same_gradients(kind, base):
    other = KINDS[
        kind.name.replace("TF", "Flax", 1)
        if kind.framework == "tf"
        else kind.name.replace("Flax", "TF")
    ]
    half = slice(0, 2) if kind.framework == "tf" else slice(2, 4)  # of what is equal
    for name in FEW[half]:
        actual, expected = (variant_gradients(k, base, name) for k in (kind, other))
        assert actual.keys() == expected.keys()
        scale = max(np.abs(w).max() for w in expected.values())
        for weight, grad in actual.items():
            assert np.abs(grad - expected[weight]).max() <= 2e-5 * scale, weight


@feature(TRAINING, "gradients are right: finite differences")
def differences(kind, base):
    model, config = loaded(kind, base, "post-LN, gelu")
    ids, mask = tokens(config, 4, 9), padded([9, 5, 1, 3], 9, "left")
    grads = gradients(kind, model, ids, mask)
    step = 2e-3
    expected = float(np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in grads.values())))
    direction = {name: g / expected for name, g in grads.items()}  # the steepest one

    def moved(by):
        if kind.framework == "tf":
            other, _ = loaded(kind, base, "post-LN, gelu")
            for name, v in other.named_weights().items():
                v.assign_add(by * direction[name])
            output = kind.value(other, ids, attention_mask=mask)
        else:
            import jax
            from flax.traverse_util import flatten_dict, unflatten_dict
            from optserve.models.flax.params import tree_path

            tree = flatten_dict(model.params)
            for name, d in direction.items():
                path = tree_path(name, head=kind.head)
                tree[path] += by * (d.T if path[-1] == "kernel" else d)
            params = jax.tree.map(lambda x: x, unflatten_dict(tree))
            output = kind.value(model, ids, attention_mask=mask, params=params)
        return np.sum(np.sin(output.astype(np.float64)) * mask[..., None])

    actual = (moved(step) - moved(-step)) / (2 * step)
    assert actual == pytest.approx(expected, rel=3e-2)


def trained_outputs(kind, model, ids, times=1, seed=0):
    """The main output with dropout, ``times`` times."""
    if kind.framework == "tf":
        import tensorflow as tf

        run = tf.function(lambda: model(ids, training=True)[0])
        return [run().numpy() for _ in range(times)]
    import jax

    keys = jax.random.split(jax.random.PRNGKey(seed), times)
    return [
        np.asarray(model(ids, dropout_rng=key, deterministic=False)[0]) for key in keys
    ]


@feature(TRAINING, "dropout and attention dropout, only in training")
def dropout(kind, base):
    for option in ("dropout", "attention_dropout"):
        model, config = loaded(kind, base, **{option: 0.3})
        ids = tokens(config, 4, 9)
        plain = kind.value(loaded(kind, base)[0], ids)
        close(kind.value(model, ids), plain)
        first, second = trained_outputs(kind, model, ids, 2)
        assert np.abs(first - second).max() > 1e-3
        assert np.abs(first - plain).max() > 1e-3
    from optserve.models.flax import model as flax_opt
    from optserve.models.tf import model as tf_opt

    math = tf_opt if kind.framework == "tf" else flax_opt
    seed = native(kind, np.array([3, 5], np.int32 if math is tf_opt else np.uint32))
    ones = native(kind, np.ones([300, 300], np.float32))
    kept = np.asarray(math.dropout(ones, 0.3, seed, 1))
    assert set(np.unique(kept)) == {0, np.float32(1) / np.float32(0.7)}
    assert kept.mean() == pytest.approx(1, abs=0.01)


@feature(TRAINING, "dropout with an explicit seed repeats itself")
def seeded(kind, base):
    model, config = loaded(kind, base, dropout=0.3, attention_dropout=0.1)
    ids = tokens(config, 4, 9)
    if kind.framework == "tf":
        import keras

        keras.utils.set_random_seed(7)
        model, _ = loaded(kind, base, dropout=0.3, attention_dropout=0.1)
        first = trained_outputs(kind, model, ids, 2)
        keras.utils.set_random_seed(7)
        model, _ = loaded(kind, base, dropout=0.3, attention_dropout=0.1)
        again = trained_outputs(kind, model, ids, 2)
    else:
        first = trained_outputs(kind, model, ids, 2)
        again = trained_outputs(kind, model, ids, 2)
        with pytest.raises(ValueError, match="dropout_rng"):
            model(ids, deterministic=False)
        plain, _ = loaded(kind, base)  # without dropout there is nothing to draw
        close(plain(ids, deterministic=False)[0], plain(ids)[0])
    for a, b in zip(first, again, strict=True):
        assert (a == b).all()


@feature(TRAINING, "layerdrop, in training only")
def layerdrop(kind, base):
    model, config = loaded(kind, base, "pre-LN", layerdrop=0.4)
    ids = tokens(config, 4, 9)
    states = {"output_hidden_states": True}
    plain = kind.value(loaded(kind, base, "pre-LN")[0], ids)
    close(kind.value(model, ids), plain)
    dropped = 0
    if kind.framework == "tf":
        import tensorflow as tf

        run = tf.function(lambda: model(ids, training=True, **states))
    for i in range(40):
        if kind.framework == "tf":
            output = run()
        else:
            import jax

            key = jax.random.PRNGKey(i)
            output = model(ids, dropout_rng=key, deterministic=False, **states)
        before, after = (np.asarray(h) for h in output.hidden_states[:2])
        dropped += (before == after).all()
    assert 5 <= dropped <= 28  # of 40 at 0.4; either end is 4 standard deviations off


@feature(TRAINING, "frozen parts: `get_layer(…).trainable = False`", "tf")
def frozen(kind, base):
    model, _ = loaded(kind, base, "pre-LN")
    count = len(model.trainable_variables)
    model.get_layer("decoder.layers.0").trainable = False
    assert len(model.trainable_variables) == count - 16
    assert 0 < model.num_parameters(only_trainable=True) < model.num_parameters()
    model.trainable = False
    assert not model.trainable_variables


def counted(function):
    """A list that grows with each call, and the function that is to be called."""
    calls = []

    def call(*args):
        calls.append(args)
        return function(*args)

    return calls, call


@feature(TRAINING, "`compile` and `fit` with the model's own loss", "tf", head=True)
def own_loss(kind, base):
    import keras
    import tensorflow as tf

    optimizers = keras.optimizers.AdamW(1e-3), keras.optimizers.SGD(1e-3)
    for jit, optimizer in zip((False, True), optimizers, strict=True):
        model, config = loaded(kind, base)
        ids = tokens(config, 8, 6)
        labels = np.where(ids < 6, -100, ids)
        model.compile(optimizer, jit_compile=jit)
        expected = float(tf.reduce_mean(model(ids, labels=labels).loss))
        both = {"input_ids": ids, "labels": labels}
        if jit:
            actual = model.evaluate(both, verbose=0)
            assert actual == pytest.approx(expected, rel=1e-4)
        traces, model.train_step = counted(model.train_step)
        history = model.fit(both, epochs=4, verbose=0, batch_size=4)
        losses = history.history["loss"]
        assert losses[-1] < losses[0]
        assert len(traces) == 1
    model.compile("sgd", run_eagerly=True)
    expected = float(tf.reduce_mean(model(ids, labels=labels).loss))
    for x, y in (  # taken apart by Python, whatever runs the step
        (both, None),
        (ids, labels),
        ({"input_ids": ids}, {"labels": labels}),
    ):
        assert model.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-4)
    model.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    data = {"input_ids": ids, "labels": ids}
    hits = kind.value(model, ids)[:, :-1].argmax(-1) == ids[:, 1:]
    actual = model.evaluate(data, verbose=0, return_dict=True)["accuracy"]
    assert actual == pytest.approx(hits.mean())
    dataset = tf.data.Dataset.from_tensor_slices({"input_ids": ids, "labels": ids})
    model.fit(dataset.batch(4), verbose=0)


@feature(TRAINING, "`compile` and `fit` with a loss and metrics of one's own", "tf")
def other_loss(kind, base):
    import keras
    import tensorflow as tf

    model, config = loaded(kind, base)
    ids = tokens(config, 8, 6)
    if kind.head:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        y, metrics = np.roll(ids, -1), ["accuracy"]
    else:
        loss, metrics = "mse", ["mae"]
        y = np.ones([8, 6, config.embed_dim], np.float32)
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, loss=loss, metrics=metrics, jit_compile=False)
    data = {"x": ids, "y": y, "batch_size": 4}
    if kind.head:  # one form for each class: the class makes no difference to it
        dataset = tf.data.Dataset.from_tensor_slices(({"input_ids": ids}, y))
        data = {"x": dataset.batch(4)}
    history = model.fit(**data, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert metrics[0] in history
    assert len(model.evaluate(ids, y, verbose=0)) == 2


@feature(TRAINING, "`predict`", "tf")
def predict(kind, base):
    model, config = loaded(kind, base)
    ids, mask = tokens(config, 5, 6), padded([6, 5, 4, 3, 2], 6, "left")
    x = {"input_ids": ids, "attention_mask": mask}
    expected = kind.value(model, ids, attention_mask=mask)
    actual = model.predict(x, batch_size=2, verbose=0)
    close(actual[kind.main], expected)
    close(actual[0], expected)
    close(model.predict([ids, mask], verbose=0)[0], expected)


@feature(TRAINING, "`mixed_bfloat16`", "tf")
def mixed(kind, base):
    import keras

    model, config = loaded(kind, base, dtype="mixed_bfloat16")
    ids = tokens(config, 4, 6)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    output = model(ids)[0]
    assert output.dtype == "bfloat16"
    float32, _ = loaded(kind, base)
    close(output, kind.value(float32, ids), tolerance=4e-2)
    if kind.head:
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        data = {"x": {"input_ids": ids, "labels": ids}}
    else:
        model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
        data = {"x": ids, "y": np.ones([4, 6, 24], np.float32)}
    losses = model.fit(**data, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@feature(TRAINING, "`jax.grad` under `jit`, an optax step lowers the loss", "flax")
def optax_step(kind, base):
    import jax
    import jax.numpy as jnp
    import optax
    from optserve.models.flax.model import token_losses

    model, config = loaded(kind, base, dropout=0.1)
    ids = native(kind, tokens(config, 4, 6))
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        output = model(ids, params=params, dropout_rng=key, deterministic=False)[0]
        if kind.head:
            losses, counts = token_losses(output, ids)
            return jnp.sum(losses * counts) / jnp.sum(counts)
        return jnp.mean((output - 1) ** 2)

    @jax.jit
    def step(params, state, key):
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params, state = model.params, optimizer.init(model.params)
    values = []
    for key in jax.random.split(jax.random.PRNGKey(0), 8):
        params, state, value = step(params, state, key)
        values.append(float(value))
    assert values[-1] < values[0]


@feature(TRAINING, "`lax.scan` with rematerialisation (`remat=True`)", "flax")
def remat(kind, base):
    import jax

    name = "post-LN, projections" if kind.head else "pre-LN"
    model, config = loaded(kind, base, name, dropout=0.2)
    scanned, _ = loaded(kind, base, name, dropout=0.2, remat=True)
    ids = tokens(config, 4, 9)
    options = {"output_hidden_states": True, "output_attentions": True}
    actual, expected = (kind.call(m, ids, **options) for m in (scanned, model))
    jax.tree.map(close, actual, expected)

    def value(params, m):
        key = jax.random.PRNGKey(3)
        return m(ids, params=params, dropout_rng=key, deterministic=False)[0].std()

    grads = [
        jax.jit(jax.grad(value), static_argnums=1)(model.params, m)
        for m in (scanned, model)
    ]
    for g, w in zip(*map(jax.tree.leaves, grads), strict=True):
        assert np.abs(g - w).max() < 1e-4
