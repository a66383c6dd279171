"""Checks of generation. Expected tokens and scores are upstream's.

``generation/recorded.json`` was made by ``generation/make_recorded.py`` with the
transformers package's own classes; sampled tokens are compared with the numpy sampler
that a client uses.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from optserve.models.generation.config import GenerationConfig
from optserve.runtime.sampling import Sampling, choose

from .conformance import feature
from .kinds import close, padded, small_config, tokens, write_checkpoint
from .loading import expected, loaded

GENERATION = "Generation"
RECORDED = json.loads(
    (Path(__file__).parent / "generation" / "recorded.json").read_text()
)
"""By name: the options, and what upstream's classes made with them."""


@cache
def model_of(kind, base):
    """One model for all checks, so that nothing is compiled twice."""
    return loaded(kind, base, "pre-LN")[0]


def prompt(config):
    """Three left-padded rows, as ``make_recorded.py`` has them."""
    mask = padded([6, 4, 1], 6, "left")
    return np.where(mask, tokens(config, 3, 6, seed=1), 1), mask


def generated(kind, model, ids, mask=None, **options):
    """New tokens, and the output itself."""
    options = {"return_dict_in_generate": True, **options}
    if kind.framework == "tf":
        options = {"jit_compile": False, **options}  # XLA's is compared by one check
    output = model.generate(ids, attention_mask=mask, **options)
    return np.asarray(output["sequences"])[:, np.shape(ids)[1] :], output


def same_as_recorded(kind, base, name):
    entry = RECORDED[name]
    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    actual, output = generated(kind, model, ids, mask, **entry["options"])
    expected = entry[kind.framework]
    assert actual.tolist() == expected["tokens"]
    if scores := expected.get("scores"):
        key = "sequences_scores" if kind.framework == "tf" else "scores"
        np.testing.assert_allclose(output[key], scores, rtol=1e-4)


@feature(GENERATION, "greedy, left-padded, tokens as upstream's", head=True)
def greedy(kind, base):
    same_as_recorded(kind, base, "greedy")


@feature(GENERATION, "beam search, sequences and scores as upstream's", head=True)
def beams(kind, base):
    same_as_recorded(kind, base, "beams")


@feature(GENERATION, "beam search with `early_stopping`, `length_penalty`", head=True)
def beams_early(kind, base):
    same_as_recorded(kind, base, "beams, early")


@feature(
    GENERATION,
    "`repetition_penalty`, `no_repeat_ngram_size`, `bad_words_ids`, `min_length`, "
    "forced and suppressed tokens",
    head=True,
)
def rules(kind, base):
    same_as_recorded(kind, base, "rules")


@feature(GENERATION, "contrastive search", head=True)
def contrastive(kind, base):
    same_as_recorded(kind, base, "contrastive")


@feature(GENERATION, "left-padded rows equal single ones", head=True)
def padding(kind, base):
    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    batch, _ = generated(kind, model, ids, mask, max_new_tokens=7)
    for row, real, actual in zip(ids, mask, batch, strict=True):
        alone, _ = generated(kind, model, row[real == 1][None], max_new_tokens=7)
        length = min(alone.shape[1], len(actual))
        assert alone[0, :length].tolist() == actual[:length].tolist()


SAMPLING = {
    "temperature": 0.8,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
}
COPIES = 3


def sampled(kind, model, ids, mask, **options):
    """``COPIES`` samples of each prompt, from one program for all checks."""
    options = {"num_return_sequences": COPIES, **SAMPLING, **options}
    return generated(
        kind, model, ids, mask, max_new_tokens=5, do_sample=True, **options
    )[0]


@feature(GENERATION, "sampling: the served model's tokens for the same seed", head=True)
def sampling(kind, base):
    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    seed = 2**40 + 5
    actual = sampled(kind, model, ids, mask, seed=seed)
    prompts = (np.repeat(x, COPIES, 0) for x in (ids, mask))
    for i, (row, real, new) in enumerate(zip(*prompts, actual, strict=True)):
        sampling = Sampling(seed=seed + i % COPIES, **SAMPLING)
        before, start = row[real == 1].tolist(), real.sum()
        sequence = [*before, *new.tolist()]
        history = [-2 - token for token in before] + sequence[start:]
        whole = np.full([1, 11], 7)  # what follows a token changes nothing before it
        whole[0, : len(sequence)] = sequence
        logits = kind.value(model, whole)[0]
        for n in range(start, len(sequence)):
            expected, _ = choose(
                logits[n - 1], sampling, position=n, history=history[:n]
            )
            assert sequence[n] == expected
            if expected == model.config.eos_token_id:
                break


@feature(GENERATION, "`sequence_bias`, as a dict or as a file has it", head=True)
def sequence_bias(kind, base):
    model = model_of(kind, base)
    ids, _ = prompt(model.config)
    biases = {(7,): 200.0, (7, 11): 300.0}
    for given in (biases, [[list(words), bias] for words, bias in biases.items()]):
        biased, _ = generated(kind, model, ids, max_new_tokens=4, sequence_bias=given)
        assert biased.tolist() == [[7, 11, 7, 11]] * len(ids)


@feature(GENERATION, "several samples of a prompt", head=True)
def copies(kind, base):
    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    everything = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    actual, again = (
        sampled(kind, model, ids, mask, seed=seed, **everything) for seed in (11, 12)
    )
    length = min(actual.shape[1], again.shape[1])
    for first in range(0, len(ids) * COPIES, COPIES):
        samples = actual[first : first + COPIES]
        assert len({tuple(row) for row in samples.tolist()}) == COPIES
        assert (samples[1:, :length] == again[first : first + 2, :length]).all()


@feature(GENERATION, "a second call compiles nothing", head=True)
def compiled_once(kind, base):
    model = model_of(kind, base)
    ids, _ = prompt(model.config)
    options = {"max_new_tokens": 5}
    generated(kind, model, ids, **options)
    count = programs(kind, model)
    generated(kind, model, ids[:, :4], **(options | {"max_new_tokens": 9}))
    generated(kind, model, ids, repetition_penalty=1.0, min_length=0, **options)
    assert programs(kind, model) == count
    with nothing_compiled(kind):
        generated(kind, model, ids, **options)


def programs(kind, model) -> int:
    """How many searches were compiled so far."""
    if kind.framework == "tf":
        return len(model.__dict__["_programs"])
    from optserve.models.flax import generation

    return generation._program._cache_size()


@contextmanager
def nothing_compiled(kind):
    """Assert what the framework itself counts: XLA's compilations, traced functions."""
    if kind.framework == "tf":
        from tensorflow.python.framework.func_graph import FuncGraph

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FuncGraph, "__init__", None)  # a trace would begin with it
            yield
        return
    import jax

    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name)
    )
    try:
        yield
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [name for name in events if "compile" in name]


@feature(GENERATION, "`generation_config`: read, written, changed by a call", head=True)
def configuration(kind, base, tmp_path):
    directory = write_checkpoint(tmp_path / "in", small_config())
    GenerationConfig(max_new_tokens=3, num_beams=2).save_pretrained(directory)
    model = kind.cls.from_pretrained(directory)
    assert model.generation_config.max_new_tokens == 3
    model.save_pretrained(tmp_path / "out")
    again = GenerationConfig.from_pretrained(tmp_path / "out")
    assert again == model.generation_config
    fresh = model_of(kind, base)
    assert fresh.generation_config.eos_token_id == fresh.config.eos_token_id
    with pytest.raises(ValueError, match="max_tokens"):
        model.generate(prompt(model.config)[0], max_tokens=3)


@feature(GENERATION, "options that cannot be are refused by name", head=True)
def refusals(kind, base):
    model = model_of(kind, base)
    ids, _ = prompt(model.config)
    for options, fault in (
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most"),
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"sequence_bias": {(99,): 1.0}}, "from 0 to 60"),
        ({"bad_words_ids": [[99]]}, "from 0 to 60"),
        ({"max_new_tokens": 40}, "max_position_embeddings 32"),
        ({"max_length": 6}, "leaves none"),
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"stop_strings": ["a"]}, "does not support stop_strings"),
        ({"max_tokens": 3}, r"not used by the model: \['max_tokens'\]"),
    ):
        with pytest.raises(ValueError, match=fault):
            model.generate(ids, **options)
    with pytest.raises(Exception, match="should be from 0 to 60"):
        model.generate(ids + 60, max_new_tokens=2)
    with pytest.raises(ValueError, match="attention_mask should"):
        model.generate(ids, attention_mask=ids[:, 1:], max_new_tokens=2)
    plain, _ = generated(kind, model, ids, max_new_tokens=5)
    off = {"num_beam_groups": 1, "typical_p": 1.0, "renormalize_logits": False}
    actual, _ = generated(kind, model, ids, max_new_tokens=5, **off)
    assert (actual == plain).all()


@feature(GENERATION, "`tf.function`, XLA, shapes that are not known", "tf", head=True)
def graphs(kind, base):
    import tensorflow as tf

    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    ids, mask = tf.constant(ids, tf.int32), tf.constant(mask, tf.int32)
    greedy = RECORDED["greedy"]
    output = model.generate(ids, attention_mask=mask, **greedy["options"])  # by XLA
    assert output.numpy()[:, 6:].tolist() == greedy["tf"]["tokens"]
    unknown = [tf.TensorSpec([None, None], tf.int32)] * 2
    for name, signature, jit_compile in (
        ("beams", None, True),
        ("rules", unknown, False),
    ):
        options = RECORDED[name]["options"]

        def generate(ids, mask, options=options):
            return model.generate(ids, attention_mask=mask, **options)

        run = tf.function(generate, signature, jit_compile=jit_compile)
        expected = RECORDED[name]["tf"]["tokens"]
        more = options["max_new_tokens"] - len(expected[0])  # not cut in a graph
        expected = np.pad(expected, [(0, 0), (0, more)], constant_values=1)
        assert run(ids, mask).numpy()[:, 6:].tolist() == expected.tolist()
    whole = tf.function(model.generate)  # with AutoGraph, as the documentation has it
    output = whole(ids, attention_mask=mask, **greedy["options"])
    assert output.numpy()[:, 6:].tolist() == greedy["tf"]["tokens"]


@feature(GENERATION, "`jax.jit`, `params=`, `trace=False`", "flax", head=True)
def transformed(kind, base):
    import jax

    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    entry = RECORDED["greedy"]

    def run(ids, mask, **more):
        return model.generate(
            ids, attention_mask=mask, **entry["options"], **more
        ).sequences

    expected = entry["flax"]["tokens"]
    assert jax.jit(run)(ids, mask)[:, 6:].tolist() == expected
    assert run(ids, mask, params=model.params)[:, 6:].tolist() == expected
    zeros = jax.tree.map(lambda x: x * 0, model.params)
    assert run(ids, mask, params=zeros)[:, 6:].tolist() != expected


@feature(GENERATION, "`output_scores`, `beam_indices`", "tf", head=True)
def scores(kind, base):
    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    entry = RECORDED["beams"]
    _, actual = generated(
        kind, model, ids, mask, output_scores=True, **entry["options"]
    )
    expected = entry["tf"]
    assert actual.beam_indices.numpy().tolist() == expected["beam_indices"]
    assert len(actual.scores) == len(expected["largest"])
    for step, largest in zip(actual.scores, expected["largest"], strict=True):
        np.testing.assert_allclose(np.max(step, 1), largest, rtol=1e-4)


@feature(
    GENERATION,
    "`output_hidden_states`, `output_attentions` of each new token",
    "tf",
    head=True,
)
def states(kind, base):
    model = model_of(kind, base)
    ids, mask = prompt(model.config)
    for options in (  # for either search; samples go through that of greedy rows
        {},
        {"penalty_alpha": 0.6, "top_k": 4},
    ):
        new, output = generated(
            kind,
            model,
            ids,
            mask,
            max_new_tokens=4,
            output_hidden_states=True,
            output_attentions=True,
            eos_token_id=None,
            **options,
        )
        assert len(output.hidden_states) == len(output.attentions) == 4
        for i in range(4):
            fed = slice(0, 6) if i == 0 else slice(5 + i, 6 + i)
            so_far = np.concatenate([ids, new[:, :i]], 1)
            real = np.concatenate([mask, np.ones_like(new[:, :i])], 1)
            reference = expected(model.config, so_far, real)
            keep = real[:, fed].astype(bool)
            pairs = zip(
                output.hidden_states[i], reference["hidden_states"], strict=True
            )
            for mine, right_one in pairs:
                close(mine, right_one[:, fed], keep)
            pairs = zip(output.attentions[i], reference["attentions"], strict=True)
            for mine, right_one in pairs:
                by_token = (np.swapaxes(x, 1, 2) for x in (mine, right_one[:, :, fed]))
                close(*by_token, keep)
    _, output = generated(kind, model, ids, mask, max_new_tokens=2)
    assert output.hidden_states is None and output.attentions is None


@feature(GENERATION, "`logits_processor` functions", head=True)
def custom(kind, base):
    model = model_of(kind, base)
    ids, mask = prompt(model.config)

    def only_seven(input_ids, scores, length):
        assert input_ids.shape[0] == scores.shape[0] == 3
        return scores * 0.0 + 1e3 * (np.arange(61) == 7)

    actual, _ = generated(
        kind, model, ids, mask, max_new_tokens=3, logits_processor=[only_seven]
    )
    assert actual.tolist() == [[7] * 3] * 3
