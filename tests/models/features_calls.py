"""Checks of calls: inputs and outputs."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest

from . import numpy_opt
from .conformance import feature
from .kinds import FEW, close, padded, tokens
from .loading import expected, loaded, native, shared

INPUTS, OUTPUTS = "Inputs", "Outputs"


# --- inputs -------------------------------------------------------------------------


@feature(INPUTS, "token ids as int32 and int64, from numpy and from the framework")
def ids_types(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 4, 9)
    reference = expected(config, ids)[kind.main]
    close(kind.value(model, ids.astype(np.int32)), reference)
    close(kind.value(model, ids.astype(np.int64)), reference)
    close(kind.value(model, native(kind, ids)), reference)
    close(kind.value(model, ids.astype(np.uint8)), reference)


@feature(INPUTS, "positional tensor, list, tuple, dict", "tf")
def forms(kind, base):
    model, config = shared(kind, base)
    ids, mask = tokens(config, 3, 6), padded([6, 4, 2], 6, "left")
    expected = kind.value(model, ids, attention_mask=mask)
    i, m = native(kind, ids), native(kind, mask)
    close(model(i, attention_mask=m)[0], expected)
    for form in ([i, m], (i, m), {"input_ids": i, "attention_mask": m}):
        close(model(form)[0], expected)
    close(model([i])[0], kind.value(model, ids))
    close(model({"input_ids": ids})[0], kind.value(model, ids))
    mapping = UserDict(input_ids=i, attention_mask=m)  # as tokenizers return
    close(model(mapping)[0], expected)
    close(model(ids.tolist())[0], kind.value(model, ids))
    close(model(input_ids=ids.tolist())[0], kind.value(model, ids))
    in_order = [i, None, m] if kind.head else [i, m, None]
    close(model(in_order)[0], expected)


@feature(INPUTS, "positional arguments in the documented order", "flax")
def positional(kind, base):
    model, config = shared(kind, base)
    ids, mask = tokens(config, 4, 9), padded([9, 6, 4, 1], 9, "left")
    positions = np.tile(np.arange(9), [4, 1])
    actual = model(ids, mask, positions, model.params, None, True, True, False)
    expected = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert isinstance(actual, tuple) and len(actual) == 3
    close(actual[0], expected[0])


@feature(INPUTS, "`position_ids`", "tf", head=True)
@feature(INPUTS, "`position_ids`", "flax")
def position_ids(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 4, 9)
    positions = np.tile(np.arange(9), [4, 1])
    positions[:2, :6] = [[3, 1, 4, 1, 5, 9], [-1, -1, 0, 1, 2, 31]]
    reference = expected(config, ids, position_ids=positions)[kind.main]
    close(kind.value(model, ids, position_ids=positions), reference)


@feature(INPUTS, "`inputs_embeds`", "tf")
def inputs_embeds(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = shared(kind, base, name)
        shape = [2, 5, config.embed_dim]
        embeds = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        reference = expected(config, inputs_embeds=embeds, name=name)[kind.main]
        close(kind.value(model, None, inputs_embeds=embeds), reference)
        close(model({"inputs_embeds": embeds})[0], reference)


@feature(INPUTS, "`get_input_embeddings()(ids)` as `inputs_embeds`", "tf")
def input_embeddings(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = shared(kind, base, name)
        ids = tokens(config, 2, 6)
        embedding = model.get_input_embeddings()
        assert embedding.weight.shape == (config.vocab_size, config.embed_dim)
        assert model.get_output_embeddings() is (embedding if kind.head else None)
        actual = kind.value(model, inputs_embeds=embedding(ids))
        close(actual, kind.value(model, ids))
        assert model(model.dummy_inputs)[0].shape[0] == 2


@feature(INPUTS, "`head_mask`, fractions too", "tf")
def head_mask(kind, base):
    model, config = shared(kind, base)
    ids, mask = tokens(config, 2, 5), np.array([[0, 1, 0.5], [1, 0.25, 0]])
    reference = expected(config, ids, head_mask=mask)
    actual = kind.call(
        model, ids, head_mask=mask.astype(np.float32), output_attentions=True
    )
    close(actual[kind.main], reference[kind.main])
    for probs, right_ones in zip(
        actual["attentions"], reference["attentions"], strict=True
    ):
        close(probs, right_ones)


@feature(INPUTS, "`labels` with −100, loss of each label", "tf", head=True)
def labels(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 3, 7)
    targets = ids.copy()
    targets[0, :3] = targets[1, 4:] = targets[2, 2] = -100
    loss = model(ids, labels=targets).loss.numpy()
    assert loss.shape == ((targets[:, 1:] != -100).sum(),)
    close(model(ids.tolist(), labels=targets.tolist()).loss, loss)
    right_one = numpy_opt.loss(expected(config, ids)["logits"], targets)
    assert loss.mean() == pytest.approx(right_one, rel=2e-5)


@feature(INPUTS, "`past_key_values` as tensors (2,B,H,T,D) and as pairs", "tf")
def past(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = shared(kind, base, name)
        ids, mask = tokens(config, 3, 9), padded([9, 6, 4], 9, "left")
        whole = kind.value(model, ids, attention_mask=mask)
        first = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
        for cache in (
            first.past_key_values,
            [(layer[0], layer[1]) for layer in first.past_key_values],
            tuple(tuple(layer) for layer in first.past_key_values),
        ):
            actual = kind.value(
                model, ids[:, 5:], attention_mask=mask, past_key_values=cache
            )
            close(actual, whole[:, 5:], mask[:, 5:].astype(bool))
        rest = native(kind, ids[:, 5:])
        in_order = [rest, cache, mask] if kind.head else [rest, mask, None, cache]
        for form in (in_order, tuple(in_order)):
            close(model(form)[0], whole[:, 5:], mask[:, 5:].astype(bool))
        by_name = {"input_ids": rest, "attention_mask": mask, "past_key_values": cache}
        close(model(by_name)[0], whole[:, 5:], mask[:, 5:].astype(bool))


@feature(
    INPUTS, "`init_cache` and `past_key_values`, the cache goes in and out", "flax"
)
def flax_cache(kind, base):
    for name in ("pre-LN", "post-LN, projections"):
        model, config = shared(kind, base, name)
        ids, mask = tokens(config, 4, 9), padded([9, 6, 4, 1], 9, "left")
        whole = kind.value(model, ids, attention_mask=mask)
        positions = np.cumsum(mask, 1) * mask - 1
        full = np.ones([4, 12], int)
        full[:, :9] = mask
        cache = model.init_cache(4, 12)
        for part in (slice(0, 4), slice(4, 5), slice(5, 9)):  # two programs
            output = model(
                ids[:, part],
                attention_mask=full,
                position_ids=positions[:, part],
                past_key_values=cache,
            )
            cache = output.past_key_values
            close(output[0], whole[:, part], mask[:, part].astype(bool))
    options = {"output_hidden_states": True, "output_attentions": True}
    inputs = (ids, full, positions, None, model.init_cache(4, 12))
    output = model(*inputs, **options)
    assert list(output)[1:] == ["hidden_states", "attentions", "past_key_values"]
    head, cache, states, attentions = model(*inputs, **options, return_dict=False)
    assert head.shape == output[0].shape and cache.keys() == output[3].keys()
    assert len(states) == 3 and len(attentions) == 2


@feature(INPUTS, "a prompt in chunks gives what the whole gives")
def chunks(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 4, 12)
    whole = expected(config, ids)[kind.main]
    sizes, start, cache, actual = (4, 1, 4, 1, 1, 1), 0, None, []
    if kind.framework == "flax":
        cache = model.init_cache(4, 12)
    for size in sizes:
        part = slice(start, start + size)
        inputs = {"past_key_values": cache}
        if kind.framework == "flax":
            inputs["attention_mask"] = np.ones([4, 12], int)
            inputs["position_ids"] = np.tile(np.arange(12)[part], [4, 1])
        output = model(ids[:, part], **inputs)
        cache = output.past_key_values
        actual.append(np.asarray(output[0]))
        start += size
    close(np.concatenate(actual, axis=1), whole)


@feature(INPUTS, "`prepare_inputs_for_generation`: a greedy loop", head=True)
def greedy(kind, base):
    model, config = shared(kind, base)
    ids, mask = tokens(config, 4, 4), padded([4, 3, 2, 1], 4, "left")

    def longer(ids, logits):
        return np.concatenate([ids, np.argmax(logits[:, -1:], -1)], axis=1)

    actual = reference = ids
    masks = [np.pad(mask, [(0, 0), (0, n)], constant_values=1) for n in range(4)]
    for seen in masks:
        reference = longer(reference, expected(config, reference, seen)["logits"])
    if kind.framework == "tf":
        past = None
        for seen in masks:
            inputs = model.prepare_inputs_for_generation(
                actual, past_key_values=past, use_cache=True, attention_mask=seen
            )
            output = model(**inputs)
            past, actual = output.past_key_values, longer(actual, output.logits)
    else:
        inputs, new = model.prepare_inputs_for_generation(ids, 12, mask), ids
        for _ in masks:
            output = model(new, **inputs)
            inputs = model.update_inputs_for_generation(output, inputs)
            actual = longer(actual, output.logits)
            new = actual[:, -1:]
    np.testing.assert_array_equal(actual, reference)


@feature(INPUTS, "`params` other than the model's own", "flax")
def other_params(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 4, 9)
    other = kind.cls(config, seed=5)
    close(kind.value(model, ids, params=other.params), kind.value(other, ids))


# --- outputs ------------------------------------------------------------------------


@feature(OUTPUTS, "hidden states and attentions")
def states(kind, base):
    for name in FEW:
        model, config = shared(kind, base, name)
        ids, mask = tokens(config, 4, 9), padded([9, 5, 1, 3], 9, "left")
        reference = expected(config, ids, mask, name=name)
        actual = kind.call(
            model,
            ids,
            attention_mask=mask,
            output_hidden_states=True,
            output_attentions=True,
        )
        keep = mask.astype(bool)
        L = config.num_hidden_layers
        assert len(actual["hidden_states"]) == L + 1
        assert len(actual["attentions"]) == L
        pairs = zip(actual["hidden_states"], reference["hidden_states"], strict=True)
        for states, right_ones in pairs:
            close(states, right_ones, keep)
        pairs = zip(actual["attentions"], reference["attentions"], strict=True)
        for probs, right_ones in pairs:
            close(probs.swapaxes(1, 2), right_ones.swapaxes(1, 2), keep)


@feature(OUTPUTS, "`past_key_values`: L tensors (2,B,H,T,D)", "tf")
def cache_layout(kind, base):
    model, config = shared(kind, base)
    ids = tokens(config, 3, 6)
    reference = expected(config, ids)
    actual = model(ids).past_key_values
    assert isinstance(actual, list) and len(actual) == config.num_hidden_layers
    for i, layer in enumerate(actual):
        close(layer, np.stack([reference["keys"][i], reference["values"][i]]))
    grown = model(ids[:, :1], past_key_values=actual).past_key_values
    assert grown[0].shape == (2, 3, 3, 7, 8)
    assert model(ids, use_cache=False).past_key_values is None


@feature(OUTPUTS, "by attribute, key, index, slice and as a tuple")
def access(kind, base):
    model, config = shared(kind, base)
    output = model(tokens(config, 4, 9), output_hidden_states=True)
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
    model, config = shared(kind, base)
    ids = tokens(config, 4, 9)
    options = {"output_hidden_states": True, "output_attentions": True}
    actual = model(ids, return_dict=False, **options)
    expected = model(ids, **options)
    assert isinstance(actual, tuple) and len(actual) == len(expected)
    close(actual[0], expected[0])


@feature(OUTPUTS, "defaults from the configuration")
def defaults(kind, base):
    options = {"output_hidden_states": True, "output_attentions": True}
    model, config = loaded(kind, base, use_cache=False, **options)
    output = model(tokens(config, 4, 9))
    assert list(output) == [kind.main, "hidden_states", "attentions"]
    output = model(tokens(config, 4, 9), output_attentions=False)
    assert list(output) == [kind.main, "hidden_states"]
    model, config = loaded(kind, base, return_dict=False)
    assert isinstance(model(tokens(config, 4, 9)), tuple)
