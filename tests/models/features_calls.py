"""Checks of calls: inputs, outputs, numbers, errors, compilation."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest

from . import numpy_opt
from .conformance import feature
from .kinds import (
    CONFIGS,
    FEW,
    checkpoint,
    close,
    padded,
    random_weights,
    small_config,
    tokens,
)

INPUTS, OUTPUTS = "Inputs", "Outputs"
NUMBERS, COMPILED, ERRORS = "Numbers", "Compiled", "Errors"


def loaded(kind, base, name="pre-LN", **options):
    """A model with a checkpoint's weights, and its configuration."""
    model = kind.cls.from_pretrained(checkpoint(base, name), **options)
    return model, model.config


def expected(config, *args, name="pre-LN", **inputs):
    """The numpy implementation's outputs with the same weights."""
    return numpy_opt.forward(
        config, random_weights(small_config(name)), *args, **inputs
    )


# --- numbers ------------------------------------------------------------------------


def _variants(kind, base, side, names=FEW):
    for name in names:
        model, config = loaded(kind, base, name)
        ids = tokens(config, 4, 9)
        mask = padded([9, 5, 1, 3], 9, side)
        wanted = expected(config, ids, mask, name=name)
        found = kind.value(model, ids, attention_mask=mask)
        close(found, wanted[kind.main], mask.astype(bool))


@feature(NUMBERS, "every architecture variant, left padding")
def left(kind, base):
    _variants(kind, base, "left", CONFIGS)


@feature(NUMBERS, "right padding")
def right(kind, base):
    _variants(kind, base, "right")


@feature(NUMBERS, "padding in the middle")
def middle(kind, base):
    _variants(kind, base, "middle")


@feature(NUMBERS, "padding scattered anywhere")
def scattered(kind, base):
    model, config = loaded(kind, base)
    ids, mask = tokens(config, 5, 12), padded([1, 4, 7, 10, 12], 12, "scattered")
    wanted = expected(config, ids, mask)
    found = kind.value(model, ids, attention_mask=mask)
    close(found, wanted[kind.main], mask.astype(bool))


@feature(NUMBERS, "one row, one token; the longest sequence there is")
def extremes(kind, base):
    model, config = loaded(kind, base)
    for S in (1, config.max_position_embeddings):
        ids = tokens(config, 1, S)
        close(kind.value(model, ids), expected(config, ids)[kind.main])


@feature(NUMBERS, "rows that are all padding stay finite, also in 16 bits")
def all_padding(kind, base):
    dtypes = ("float32", "bfloat16", "float16")
    for dtype in dtypes:
        model, config = loaded(kind, base, dtype=dtype)
        ids, mask = tokens(config, 2, 6), np.zeros([2, 6], int)
        mask[0, 4:] = 1
        found = kind.value(model, ids, attention_mask=mask).astype(np.float32)
        assert np.isfinite(found).all()


@feature(NUMBERS, "bfloat16 and float16 within the type's error")
def half(kind, base):
    for dtype, tolerance in (("bfloat16", 4e-2), ("float16", 6e-3)):
        for name in ("pre-LN", "post-LN, projections"):
            model, config = loaded(kind, base, name, dtype=dtype)
            ids = tokens(config, 2, 6)
            found = kind.call(model, ids)[kind.main]
            assert str(found.dtype) == dtype
            wanted = expected(config, ids, name=name)[kind.main]
            close(found, wanted, tolerance=tolerance)


# --- inputs -------------------------------------------------------------------------


@feature(INPUTS, "token ids as int32 and int64, from numpy and from the framework")
def ids_types(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 2, 6)
    wanted = expected(config, ids)[kind.main]
    close(kind.value(model, ids.astype(np.int32)), wanted)
    close(kind.value(model, ids.astype(np.int64)), wanted)
    close(kind.value(model, _native(kind, ids)), wanted)


def _native(kind, x):
    if kind.framework == "tf":
        import tensorflow as tf

        return tf.constant(x)
    import jax.numpy as jnp

    return jnp.asarray(x)


@feature(INPUTS, "positional tensor, list, tuple, dict", "tf")
def forms(kind, base):
    model, config = loaded(kind, base)
    ids, mask = tokens(config, 3, 6), padded([6, 4, 2], 6, "left")
    wanted = kind.value(model, ids, attention_mask=mask)
    i, m = _native(kind, ids), _native(kind, mask)
    close(model(i, attention_mask=m)[0], wanted)
    for form in ([i, m], (i, m), {"input_ids": i, "attention_mask": m}):
        close(model(form)[0], wanted)
    close(model([i])[0], kind.value(model, ids))
    close(model({"input_ids": ids})[0], kind.value(model, ids))
    mapping = UserDict(input_ids=i, attention_mask=m)  # as tokenizers return
    close(model(mapping)[0], wanted)
    close(model(ids.tolist())[0], kind.value(model, ids))
    close(model(input_ids=ids.tolist())[0], kind.value(model, ids))
    in_order = [i, None, m] if kind.head else [i, m, None]
    close(model(in_order)[0], wanted)


@feature(INPUTS, "positional arguments in the documented order", "flax")
def positional(kind, base):
    model, config = loaded(kind, base)
    ids, mask = tokens(config, 3, 6), padded([6, 4, 2], 6, "left")
    positions = np.tile(np.arange(6), [3, 1])
    found = model(ids, mask, positions, model.params, None, True, True, False)
    wanted = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert isinstance(found, tuple) and len(found) == 3
    close(found[0], wanted[0])


@feature(INPUTS, "`position_ids`", "tf", head=True)
@feature(INPUTS, "`position_ids`", "flax")
def position_ids(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 2, 6)
    positions = np.array([[3, 1, 4, 1, 5, 9], [-1, -1, 0, 1, 2, 31]])
    wanted = expected(config, ids, position_ids=positions)[kind.main]
    close(kind.value(model, ids, position_ids=positions), wanted)


@feature(INPUTS, "`inputs_embeds`", "tf")
def inputs_embeds(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = loaded(kind, base, name)
        shape = [2, 5, config.embed_dim]
        embeds = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        wanted = expected(config, inputs_embeds=embeds, name=name)[kind.main]
        close(kind.value(model, None, inputs_embeds=embeds), wanted)
        close(model({"inputs_embeds": embeds})[0], wanted)


@feature(INPUTS, "`head_mask`, fractions too", "tf")
def head_mask(kind, base):
    model, config = loaded(kind, base)
    ids, mask = tokens(config, 2, 5), np.array([[0, 1, 0.5], [1, 0.25, 0]])
    wanted = expected(config, ids, head_mask=mask)
    found = kind.call(
        model, ids, head_mask=mask.astype(np.float32), output_attentions=True
    )
    close(found[kind.main], wanted[kind.main])
    for probs, right_ones in zip(
        found["attentions"], wanted["attentions"], strict=True
    ):
        close(probs, right_ones)


@feature(INPUTS, "`labels` with −100, loss of each label", "tf", head=True)
def labels(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 3, 7)
    wanted = ids.copy()
    wanted[0, :3] = wanted[1, 4:] = wanted[2, 2] = -100
    loss = model(ids, labels=wanted).loss.numpy()
    assert loss.shape == ((wanted[:, 1:] != -100).sum(),)
    close(model(ids.tolist(), labels=wanted.tolist()).loss, loss)
    right_one = numpy_opt.loss(expected(config, ids)["logits"], wanted)
    assert loss.mean() == pytest.approx(right_one, rel=2e-5)


@feature(INPUTS, "`past_key_values` as tensors (2,B,H,T,D) and as pairs", "tf")
def past(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = loaded(kind, base, name)
        ids, mask = tokens(config, 3, 9), padded([9, 6, 4], 9, "left")
        whole = kind.value(model, ids, attention_mask=mask)
        first = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
        for cache in (
            first.past_key_values,
            [(layer[0], layer[1]) for layer in first.past_key_values],
            tuple(tuple(layer) for layer in first.past_key_values),
        ):
            found = kind.value(
                model, ids[:, 5:], attention_mask=mask, past_key_values=cache
            )
            close(found, whole[:, 5:], mask[:, 5:].astype(bool))


@feature(
    INPUTS, "`init_cache` and `past_key_values`, the cache goes in and out", "flax"
)
def flax_cache(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = loaded(kind, base, name)
        ids, mask = tokens(config, 3, 9), padded([9, 6, 4], 9, "left")
        whole = kind.value(model, ids, attention_mask=mask)
        positions = np.cumsum(mask, 1) * mask - 1
        full = np.ones([3, 12], int)
        full[:, :9] = mask
        cache = model.init_cache(3, 12)
        for part in (slice(0, 5), slice(5, 6), slice(6, 9)):
            output = model(
                ids[:, part],
                attention_mask=full,
                position_ids=positions[:, part],
                past_key_values=cache,
            )
            cache = output.past_key_values
            close(output[0], whole[:, part], mask[:, part].astype(bool))


@feature(INPUTS, "a prompt in chunks gives what the whole gives")
def chunks(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 2, 12)
    whole = expected(config, ids)[kind.main]
    sizes, start, cache, found = (4, 1, 5, 2), 0, None, []
    if kind.framework == "flax":
        cache = model.init_cache(2, 12)
    for size in sizes:
        part = slice(start, start + size)
        inputs = {"past_key_values": cache}
        if kind.framework == "flax":
            inputs["attention_mask"] = np.ones([2, 12], int)
            inputs["position_ids"] = np.tile(np.arange(12)[part], [2, 1])
        output = model(ids[:, part], **inputs)
        cache = output.past_key_values
        found.append(np.asarray(output[0]))
        start += size
    close(np.concatenate(found, axis=1), whole)


@feature(INPUTS, "`params` other than the model's own", "flax")
def other_params(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 2, 6)
    other = kind.cls(config, seed=5)
    close(kind.value(model, ids, params=other.params), kind.value(other, ids))


# --- outputs ------------------------------------------------------------------------


@feature(OUTPUTS, "hidden states and attentions")
def states(kind, base):
    for name in FEW:
        model, config = loaded(kind, base, name)
        ids, mask = tokens(config, 3, 6), padded([6, 4, 1], 6, "left")
        wanted = expected(config, ids, mask, name=name)
        found = kind.call(
            model,
            ids,
            attention_mask=mask,
            output_hidden_states=True,
            output_attentions=True,
        )
        keep = mask.astype(bool)
        L = config.num_hidden_layers
        assert len(found["hidden_states"]) == L + 1
        assert len(found["attentions"]) == L
        pairs = zip(found["hidden_states"], wanted["hidden_states"], strict=True)
        for states, right_ones in pairs:
            close(states, right_ones, keep)
        pairs = zip(found["attentions"], wanted["attentions"], strict=True)
        for probs, right_ones in pairs:
            close(probs.swapaxes(1, 2), right_ones.swapaxes(1, 2), keep)


@feature(OUTPUTS, "`past_key_values`: L tensors (2,B,H,T,D)", "tf")
def cache_layout(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 3, 6)
    wanted = expected(config, ids)
    found = model(ids).past_key_values
    assert isinstance(found, list) and len(found) == config.num_hidden_layers
    for i, layer in enumerate(found):
        close(layer, np.stack([wanted["keys"][i], wanted["values"][i]]))
    grown = model(ids[:, :1], past_key_values=found).past_key_values
    assert grown[0].shape == (2, 3, 3, 7, 8)
    assert model(ids, use_cache=False).past_key_values is None


@feature(OUTPUTS, "by attribute, key, index, slice and as a tuple")
def access(kind, base):
    model, config = loaded(kind, base)
    output = model(tokens(config, 2, 6), output_hidden_states=True)
    name = kind.main
    assert output[0] is output[name] is getattr(output, name)
    assert output[:1][0] is output[0] and output.to_tuple()[0] is output[0]
    assert output.attentions is None and "attentions" not in output
    assert next(iter(output.keys())) == name
    assert len(output.to_tuple()) == len(output)
    with pytest.raises(KeyError):
        output["attentions"]
    with pytest.raises(AttributeError, match="no field 'nothing'"):
        _ = output.nothing


@feature(OUTPUTS, "`return_dict=False` gives a tuple without absent fields")
def tuples(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 2, 6)
    options = {"output_hidden_states": True, "output_attentions": True}
    found = model(ids, return_dict=False, **options)
    wanted = model(ids, **options)
    assert isinstance(found, tuple) and len(found) == len(wanted)
    close(found[0], wanted[0])


@feature(OUTPUTS, "defaults from the configuration")
def defaults(kind, base):
    options = {"output_hidden_states": True, "output_attentions": True}
    model, config = loaded(kind, base, use_cache=False, **options)
    output = model(tokens(config, 2, 6))
    assert list(output) == [kind.main, "hidden_states", "attentions"]
    output = model(tokens(config, 2, 6), output_attentions=False)
    assert list(output) == [kind.main, "hidden_states"]
    model, config = loaded(kind, base, return_dict=False)
    assert isinstance(model(tokens(config, 2, 6)), tuple)


# --- compiled -----------------------------------------------------------------------


@feature(COMPILED, "`tf.function`, also with unknown shapes", "tf")
def graph(kind, base):
    import tensorflow as tf

    for name in ("pre-LN", "post-LN, projections"):
        model, config = loaded(kind, base, name)
        spec = tf.TensorSpec([None, None], tf.int32)
        f = tf.function(lambda i, m, model=model: model(i, attention_mask=m))
        any_shape = tf.function(f, input_signature=[spec, spec])
        for B, S in ((2, 5), (3, 7)):
            ids, mask = tokens(config, B, S), np.ones([B, S], np.int32)
            mask[0, :2] = 0
            wanted = kind.value(model, ids, attention_mask=mask)
            ids = ids.astype(np.int32)
            close(any_shape(ids, mask)[0], wanted)
        output = f(tf.constant(ids), tf.constant(mask))
        close(output[kind.main], wanted)
        step = tf.function(lambda i, p, model=model: model(i, past_key_values=p))
        first = model(ids[:, :4])
        found = step(tf.constant(ids[:, 4:]), first.past_key_values)
        close(found[0], kind.value(model, ids)[:, 4:])


@feature(COMPILED, "XLA (`jit_compile=True`)", "tf")
def xla(kind, base):
    import tensorflow as tf

    model, config = loaded(kind, base)
    ids, mask = tokens(config, 2, 6), padded([6, 3], 6, "left").astype(np.int32)
    f = tf.function(
        lambda i, m: model(i, attention_mask=m, output_hidden_states=True),
        jit_compile=True,
    )
    output = f(tf.constant(ids), tf.constant(mask))
    wanted = kind.value(model, ids, attention_mask=mask)
    close(output[kind.main], wanted)
    if kind.head:
        loss = tf.function(lambda i: model(i, labels=i).loss, jit_compile=True)
        close(loss(tf.constant(ids)), model(ids, labels=ids).loss)


@feature(COMPILED, "`jax.jit`", "flax")
def jit(kind, base):
    import jax

    model, config = loaded(kind, base)
    ids, mask = tokens(config, 2, 6), padded([6, 3], 6, "left")
    f = jax.jit(lambda p, i, m: model(i, attention_mask=m, params=p))
    output = f(model.params, ids, mask)
    close(output[kind.main], kind.value(model, ids, attention_mask=mask))
    step = jax.jit(
        lambda i, m, p, c: model(i, m, p, past_key_values=c, return_dict=False)
    )
    full, cache = np.ones([2, 8], int), model.init_cache(2, 8)
    whole = kind.value(model, ids)
    for s in range(3):
        at = np.full([2, 1], s)
        found, cache = step(ids[:, s : s + 1], full, at, cache)
        close(found, whole[:, s : s + 1])


@feature(COMPILED, "`jax.vmap` and `jax.pmap`", "flax")
def maps(kind, base):
    import jax

    model, config = loaded(kind, base)
    ids = tokens(config, 3, 5)
    wanted = kind.value(model, ids)
    found = jax.vmap(lambda i: model(i[None])[0][0])(ids)
    close(found, wanted)
    close(jax.pmap(lambda i: model(i)[0])(ids[None])[0], wanted)
    stacked = jax.tree.map(lambda x: np.stack([x, x]), model.params)
    both = jax.vmap(lambda p: model(ids, params=p)[0])(stacked)
    close(both, np.stack([wanted, wanted]))


@feature(COMPILED, "`jax.export` and `jax2tf`, with symbolic shapes", "flax")
def exported(kind, base):
    import jax
    import jax.numpy as jnp
    from jax import export

    model, config = loaded(kind, base)
    B, S = export.symbolic_shape("b, s")
    program = export.export(jax.jit(lambda i: model(i)[0]))(
        jax.ShapeDtypeStruct((B, S), jnp.int32)
    )
    ids = tokens(config, 2, 5).astype(np.int32)
    again = export.deserialize(program.serialize())
    close(again.call(ids), kind.value(model, ids))


@feature(COMPILED, "`.module` is a `flax.linen` module", "flax")
def module(kind, base):
    import flax.linen as nn
    import jax

    model, config = loaded(kind, base)
    assert isinstance(model.module, nn.Module)
    ids = tokens(config, 2, 6)
    found = model.module.apply({"params": model.params}, ids)
    close(found[0], kind.value(model, ids))
    fresh = model.module.init(jax.random.PRNGKey(0), ids)["params"]
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, model.params)


@feature(COMPILED, "Keras functional API", "tf")
def functional(kind, base):
    import keras

    model, config = loaded(kind, base)
    ids, mask = tokens(config, 2, 5), padded([5, 3], 5, "right")
    i = keras.Input([None], dtype="int32", name="input_ids")
    m = keras.Input([None], dtype="int32", name="attention_mask")
    wanted = kind.value(model, ids, attention_mask=mask)
    for output in (
        model(i, attention_mask=m),
        model([i, m]),
        model({"input_ids": i, "attention_mask": m}),
    ):
        last = output[kind.main]
        assert last.shape == (None, None, wanted.shape[-1])
        functional = keras.Model([i, m], keras.layers.Activation("linear")(last))
        found = functional([ids.astype(np.int32), mask.astype(np.int32)])
        close(found, wanted)
        assert len(functional.trainable_variables) == len(model.trainable_variables)


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
    model, config = loaded(kind, base)
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


@feature(ERRORS, "shapes that do not fit are refused with what was expected")
def wrong_shapes(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 2, 4)
    _raises(lambda: model(ids[0]), "shape (B, S)")
    _raises(lambda: model(ids.astype(np.float32)), "int32 or int64")
    _raises(lambda: model(ids, attention_mask=np.ones([2, 3])), "(2, 4)")
    if kind.framework == "flax":
        cache = model.init_cache(2, 6)
        _raises(lambda: model(ids, past_key_values=cache), "position_ids", "(2, 6)")
        _raises(lambda: model.init_cache(2, 99), "max_position_embeddings 32")
        _raises(
            lambda: model(
                np.tile(ids, 2), np.ones([2, 6]), np.ones([2, 8]), None, cache
            ),
            "holds 6 tokens",
        )
    else:
        _raises(lambda: model(ids, past_key_values=[]), "2 layers")
        bad = [np.zeros([2, 2, 1, 4, 8], np.float32)] * 2
        _raises(lambda: model(ids, past_key_values=bad), "(B, 3, T, 8)")
        _raises(lambda: model({"ids": ids}), "unknown input 'ids'")
        _raises(lambda: model(ids, head_mask=np.ones([3, 2])), "(2, 3)")
        _raises(lambda: model(attention_mask=np.ones([2, 4])), "input_ids")
        _raises(
            lambda: model(ids, inputs_embeds=np.ones([2, 4, 24], np.float32)),
            "inputs_embeds",
        )
