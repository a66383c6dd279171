"""Class against class: what a user of the transformers package (<5) calls, called on
its classes and on ours, with the same weights.

Needs tf-keras, flax and torch beside transformers.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from optserve.models.checkpoints import save_weights

from .kinds import (
    CONFIGS,
    KINDS,
    OPTConfig,
    close,
    padded,
    random_weights,
    small_config,
    tokens,
)

pytestmark = pytest.mark.reference

ORDINARY = [
    name
    for name, fields in CONFIGS.items()
    if not fields.keys()
    & {
        "enable_bias",
        "layer_norm_elementwise_affine",
        "tie_word_embeddings",
        "pad_token_id",
    }
]
"""The configurations that Transformers' TensorFlow and Flax classes can hold."""

FORMATS = {"tf": "h5", "flax": "msgpack"}


@pytest.fixture(scope="module", autouse=True)
def reference(transformers):
    return transformers


def write(directory, config, format):
    config.save_pretrained(directory)
    save_weights(directory, random_weights(config).items(), format=format)
    return directory


def both(reference, kind, name, directory, **options):
    """Transformers' model and ours, of a named configuration."""
    write(directory, small_config(name, **options), FORMATS[kind.framework])
    cls = getattr(reference, kind.name)
    return cls.from_pretrained(directory), kind.cls.from_pretrained(directory)


def parameters(function) -> dict:
    taken = inspect.signature(function).parameters
    return {
        name: p.default
        for name, p in taken.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name != "self"
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_signatures(reference, kind):
    theirs, ours = getattr(reference, kind.name), kind.cls
    call = "call" if kind.framework == "tf" else "__call__"
    actual, expected = (parameters(getattr(cls, call)) for cls in (ours, theirs))
    if kind.framework == "tf":  # what theirs ignores without naming it
        assert actual.popitem() == ("token_type_ids", None)
    assert list(actual.items()) == list(expected.items())
    methods = ["__init__", "from_pretrained", "save_pretrained"]
    if kind.framework == "flax":
        methods += ["init_cache", "init_weights", "to_bf16", "to_fp16", "to_fp32"]
    for method in methods:
        expected = parameters(getattr(theirs, method))
        actual = parameters(getattr(ours, method))
        assert next(iter(actual)) == next(iter(expected)), method
    if kind.framework == "flax":
        expected, actual = parameters(theirs.__init__), parameters(ours.__init__)
        assert list(actual)[: len(expected)] == list(expected)


def test_configuration(reference, tmp_path):
    theirs = parameters(reference.OPTConfig.__init__)
    ours = OPTConfig(*theirs.values())
    expected = reference.OPTConfig(*theirs.values())
    for config in (ours, OPTConfig()):
        for name in theirs:
            assert getattr(config, name) == getattr(expected, name), name
    small_config("post-LN, projections", my_key=[1]).save_pretrained(tmp_path)
    read = reference.OPTConfig.from_pretrained(tmp_path)
    assert read.my_key == [1] and read.word_embed_proj_dim == 10
    read.save_pretrained(tmp_path)
    again = OPTConfig.from_pretrained(tmp_path)
    for name, value in small_config("post-LN, projections").to_dict().items():
        assert getattr(again, name) == value, name


def test_attributes_of_the_configuration(reference):
    """Every one that is documented for all configurations has the same value here."""
    theirs, ours = reference.OPTConfig(), OPTConfig()
    named = {
        name
        for name in dir(theirs)
        if not name.startswith("_") and not callable(getattr(theirs, name))
    }
    other = {
        *("dtype", "transformers_version", "has_no_defaults_at_init", "sub_configs"),
        *("base_config_key", "base_model_tp_plan", "base_model_pp_plan"),
        *("base_model_ep_plan", "cross_attention_hidden_size", "finetuning_task"),
        *("torchscript", "tf_legacy_loss", "use_bfloat16", "remove_invalid_values"),
        *("typical_p", "num_beam_groups", "diversity_penalty"),
        *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
    }
    """What belongs to other classes, or to what ``generate`` refuses."""
    for name in named - other:
        assert getattr(ours, name) == getattr(theirs, name), name


def agree(actual, expected, keep=None):
    """The same fields in the same order, as tuples or as dicts, and the same numbers.

    ``keep`` [B,S] marks what is compared: Transformers' padding is arbitrary.
    """
    assert isinstance(actual, tuple) == isinstance(expected, tuple)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        actual, expected = actual.values(), expected.values()
    for mine, theirs in zip(actual, expected, strict=True):
        if isinstance(theirs, list | tuple):
            assert len(mine) == len(theirs)
            for a, b in zip(mine, theirs, strict=True):
                same(a, b, keep)
        elif not isinstance(theirs, dict):  # Flax's cache is its own affair
            same(mine, theirs, keep)


def same(mine, theirs, keep):
    mine = np.asarray(mine)
    theirs = np.asarray(theirs)  # a (key, value) pair becomes (2, B, H, T, D)
    if keep is None:
        close(mine, theirs)
    elif mine.ndim == 3:
        close(mine, theirs, keep)
    elif mine.ndim == 4:  # attentions (B, H, S, T)
        close(mine.swapaxes(1, 2), theirs.swapaxes(1, 2), keep)
    else:
        close(mine.transpose(1, 3, 0, 2, 4), theirs.transpose(1, 3, 0, 2, 4), keep)


STATES = {"output_hidden_states": True, "output_attentions": True}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("head", [False, True])
def test_tensorflow_calls(reference, head, name, tmp_path):
    kind = KINDS["TFOPTForCausalLM" if head else "TFOPTModel"]
    theirs, ours = both(reference, kind, name, tmp_path)
    config = ours.config
    ids = tokens(config, 4, 8).astype(np.int32)
    heads = (config.num_hidden_layers, config.num_attention_heads)
    head_mask = np.linspace(1, 0, np.prod(heads)).reshape(heads).astype(np.float32)
    embeds = np.random.default_rng(1).normal(size=(4, 8, config.embed_dim))
    embeds = embeds.astype(np.float32)
    for call in (
        lambda m: m(ids),
        lambda m: m(ids.astype(np.int64)),
        lambda m: m([ids]),
        lambda m: m({"input_ids": ids}),
        lambda m: m(input_ids=ids, **STATES),
        lambda m: m(ids, **STATES, return_dict=False),
        lambda m: m(ids, use_cache=False, return_dict=False),
        lambda m: m(ids, use_cache=False, output_attentions=True),
        lambda m: m(ids, head_mask=head_mask, **STATES),
        lambda m: m({"inputs_embeds": embeds}, **STATES),
        lambda m: m(ids, training=True),
        lambda m: m(ids[:, :1], **STATES),
        lambda m: m(ids[:1], **STATES),
    ):
        agree(call(ours), call(theirs))
    if not head:
        agree(ours([ids, np.ones_like(ids)]), theirs([ids, np.ones_like(ids)]))
    for side in ("left", "right", "middle", "scattered"):
        mask = padded([8, 6, 3, 1], 8, side).astype(np.int32)
        keep = mask.astype(bool)
        for call in (
            lambda m, mask=mask: m(ids, attention_mask=mask, **STATES),
            lambda m, mask=mask: m({"input_ids": ids, "attention_mask": mask}),
            lambda m, mask=mask: m(
                {
                    "inputs_embeds": embeds,
                    "attention_mask": mask,
                    "head_mask": head_mask,
                }
            ),
        ):
            agree(call(ours), call(theirs), keep)
    # Caches, each model's own and the other's.
    mask = padded([8, 6, 5, 4], 8, "left").astype(np.int32)
    mine, other = (m(ids[:, :5], attention_mask=mask[:, :5]) for m in (ours, theirs))
    for cut in (slice(5, 6), slice(5, 8)):
        full = mask[:, : cut.stop]
        expected = theirs(
            ids[:, cut], attention_mask=full, past_key_values=other.past_key_values
        )
        for cache in (mine.past_key_values, other.past_key_values):
            actual = ours(ids[:, cut], attention_mask=full, past_key_values=cache)
            close(actual[0], expected[0])


@pytest.mark.parametrize("name", ORDINARY)
def test_tensorflow_loss(reference, name, tmp_path):
    kind = KINDS["TFOPTForCausalLM"]
    theirs, ours = both(reference, kind, name, tmp_path)
    ids = tokens(ours.config, 3, 7).astype(np.int32)
    labels = ids.copy()
    labels[0, :4] = labels[1, 5:] = -100
    expected, actual = theirs(ids, labels=labels), ours(ids, labels=labels)
    # Transformers' Keras 2 build averages the loss, the documented one does not.
    assert float(actual.loss.numpy().mean()) == pytest.approx(
        float(expected.loss.numpy().mean()), rel=2e-5
    )
    tuples = [m(ids, labels=labels, return_dict=False) for m in (ours, theirs)]
    assert len(tuples[0]) == len(tuples[1]) == 3
    close(tuples[0][1], tuples[1][1])


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("head", [False, True])
def test_flax_calls(reference, head, name, tmp_path):
    kind = KINDS["FlaxOPTForCausalLM" if head else "FlaxOPTModel"]
    theirs, ours = both(reference, kind, name, tmp_path)
    ids = tokens(ours.config, 4, 8).astype(np.int32)
    positions = (ids % 13).astype(np.int32)
    for call in (
        lambda m: m(ids),
        lambda m: m(ids, **STATES),
        lambda m: m(ids, **STATES, return_dict=False),
        lambda m: m(ids, None, positions),
        lambda m: m(ids, None, None, m.params, None, True, False, True),
        lambda m: m(ids[:1, :1], **STATES),
    ):
        agree(call(ours), call(theirs))
    for side in ("left", "right", "middle", "scattered"):
        mask = padded([8, 6, 3, 1], 8, side).astype(np.int32)
        actual, expected = (m(ids, mask, **STATES) for m in (ours, theirs))
        agree(actual, expected, mask.astype(bool))
    # Decoding with a cache of a fixed length.
    full = np.ones([4, 10], np.int32)
    caches = [m.init_cache(4, 10) for m in (ours, theirs)]
    for cut in (slice(0, 5), slice(5, 6), slice(6, 8)):
        at = np.tile(np.arange(8, dtype=np.int32)[cut], [4, 1])
        for as_dict in (False, True):
            outputs = [
                m(
                    ids[:, cut],
                    attention_mask=full,
                    position_ids=at,
                    past_key_values=cache,
                    return_dict=as_dict,
                    **STATES,
                )
                for m, cache in zip((ours, theirs), caches, strict=True)
            ]
            agree(*outputs)
        caches = [output.past_key_values for output in outputs]


@pytest.mark.parametrize("name", ["FlaxOPTModel", "FlaxOPTForCausalLM"])
def test_flax_names_and_weights_both_ways(reference, name, tmp_path):
    """A params tree of Transformers' works in ours, and the other way round."""
    theirs, ours = both(reference, KINDS[name], "post-LN, projections", tmp_path)
    ids = tokens(ours.config, 2, 5).astype(np.int32)
    agree(ours(ids, params=theirs.params), theirs(ids, params=ours.params))
    ours.params = theirs.params


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("head", [False, True])
def test_flax_16_bits(reference, head, dtype, tmp_path):
    kind = KINDS["FlaxOPTForCausalLM" if head else "FlaxOPTModel"]
    directory = write(tmp_path, small_config(), "msgpack")
    import jax.numpy as jnp

    theirs, ours = (
        cls.from_pretrained(directory, dtype=getattr(jnp, dtype))
        for cls in (getattr(reference, kind.name), kind.cls)
    )
    ids = tokens(ours.config, 3, 6).astype(np.int32)
    actual, expected = ours(ids), theirs(ids)
    assert actual[0].dtype == expected[0].dtype == dtype
    close(actual[0], expected[0], tolerance={"bfloat16": 4e-2, "float16": 6e-3}[dtype])


@pytest.mark.parametrize("limit", ["5GB", "20KB"])
@pytest.mark.parametrize("writer", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("format", ["safetensors", "h5", "msgpack"])
def test_the_reference_reads_what_every_class_writes(
    reference, writer, format, limit, tmp_path
):
    """All six of its classes where it can read the format at all."""
    import torch

    ours = writer.cls(small_config("post-LN, projections"))
    ours.save_pretrained(tmp_path, format=format, max_shard_size=limit)
    ids = tokens(ours.config, 2, 6).astype(np.int32)
    expected = writer.call(ours, ids, output_hidden_states=True)["hidden_states"][-1]
    if format == "safetensors":
        readers = ["OPTModel", "OPTForCausalLM", *KINDS]
    elif format == "h5":
        readers = ["TFOPTModel", "TFOPTForCausalLM"]
    else:
        readers = ["FlaxOPTModel", "FlaxOPTForCausalLM"]
    if format == "safetensors" and limit == "20KB":
        readers = readers[:4]  # Transformers' Flax class reads only one such file
    for name in readers:
        if writer.head and name == "FlaxOPTModel" and limit == "20KB":
            continue  # Transformers does not strip the prefix of a sharded file
        # Its TensorFlow classes want to be told of PyTorch's names.
        told = format == "safetensors" and name.startswith("TF")
        options = {"from_pt": True} if told else {}
        model = getattr(reference, name).from_pretrained(tmp_path, **options)
        given = torch.tensor(ids) if name.startswith("OPT") else ids
        actual = model(given, output_hidden_states=True).hidden_states[-1]
        close(actual.detach() if name.startswith("OPT") else actual, expected)


@pytest.mark.parametrize("reader", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("writer", ["OPTModel", "OPTForCausalLM", *KINDS])
def test_every_class_reads_what_the_reference_writes(
    reference, writer, reader, tmp_path
):
    import torch

    source = tmp_path / "source"
    format = FORMATS.get(KINDS[writer].framework) if writer in KINDS else "safetensors"
    write(source, small_config("post-LN, projections"), format)
    theirs = getattr(reference, writer).from_pretrained(source)
    ids = tokens(small_config(), 2, 6).astype(np.int32)
    given = torch.tensor(ids) if writer.startswith("OPT") else ids
    expected = theirs(given, output_hidden_states=True).hidden_states[-1]
    if writer.startswith("OPT"):
        expected = expected.detach()
    for safe in (True, False):
        out = tmp_path / str(safe)
        theirs.save_pretrained(out, safe_serialization=safe)
        ours = reader.cls.from_pretrained(out)
        actual = reader.call(ours, ids, output_hidden_states=True)["hidden_states"]
        close(actual[-1], expected)
