"""``generate`` against the transformers package's own TensorFlow and Flax classes, on
random checkpoints: the same tokens, and the same scores of beams.

Needs tf-keras, flax and torch beside transformers (<5).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from optserve.models.checkpoints import save_weights
from optserve.models.generation.config import GenerationConfig

from ..kinds import KINDS, padded, random_weights, small_config, tokens

pytestmark = pytest.mark.reference

VARIANTS = (
    "pre-LN",
    "post-LN, projections",
    "pre-LN, projections",
    "post-LN, gelu",
    "no final norm",
)
SEEDS = range(4)
KIND = {"tf": KINDS["TFOPTForCausalLM"], "flax": KINDS["FlaxOPTForCausalLM"]}
FORMATS = {"tf": "h5", "flax": "msgpack"}


@pytest.fixture(scope="module", autouse=True)
def reference(transformers, quick_compiler):
    return transformers


def both(reference, framework, directory, name, seed):
    """The package's model and ours with the same random weights."""
    kind = KIND[framework]
    config = small_config(name)
    config.save_pretrained(directory)
    weights = random_weights(config, seed)
    save_weights(directory, weights.items(), format=FORMATS[framework])
    theirs = getattr(reference, kind.name).from_pretrained(directory)
    return theirs, kind.cls.from_pretrained(directory)


def sequences(model, ids, mask, **options):
    """Tokens and, of beams, their scores."""
    if type(model).__name__.startswith("TF"):
        import tensorflow as tf

        ids, mask = tf.constant(ids, tf.int32), tf.constant(mask, tf.int32)
        options["return_dict_in_generate"] = True
    if type(model).__module__.startswith("optserve.models.tf"):
        options["jit_compile"] = False  # other tests compare it with what XLA makes
    output = model.generate(ids, attention_mask=mask, pad_token_id=1, **options)
    scores = getattr(output, "sequences_scores", getattr(output, "scores", None))
    if isinstance(scores, tuple):
        scores = None
    return np.asarray(output.sequences), None if scores is None else np.asarray(scores)


def equal(reference, framework, directory, name, seed, **options):
    theirs, ours = both(reference, framework, directory, name, seed)
    ids = tokens(ours.config, 3, 6, seed=seed + 10)
    mask = padded([6, 4, 1], 6, "left")
    ids = np.where(mask, ids, 1)
    expected, expected_scores = sequences(theirs, ids, mask, **options)
    actual, scores = sequences(ours, ids, mask, **options)
    # Of a beam that never ended theirs has padding in the prompt's place too.
    assert (actual[:, :6] == np.repeat(ids, len(actual) // 3, 0)).all()
    assert actual[:, 6:].tolist() == expected[:, 6:].tolist()
    if expected_scores is not None:
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("framework", ["tf", "flax"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_checkpoints(reference, framework, name, seed, tmp_path):
    for beams in (1, 3, 4):
        options = {"num_beams": beams, "num_return_sequences": min(beams, 2)}
        equal(
            reference,
            framework,
            tmp_path / str(beams),
            name,
            seed,
            max_new_tokens=12,
            **options,
        )


OPTIONS = {
    "early stopping": {"num_beams": 3, "early_stopping": True},
    "never stopping": {"num_beams": 3, "early_stopping": "never"},
    "long ones": {"num_beams": 3, "length_penalty": 2.0},
    "short ones": {"num_beams": 3, "length_penalty": -1.0},
    "minimum": {"min_length": 14},
    "minimum, beams": {"min_length": 14, "num_beams": 3},
    "forced end": {"forced_eos_token_id": 2},
    "forced end, beams": {"forced_eos_token_id": 2, "num_beams": 3},
    "suppressed": {"suppress_tokens": [4, 9, 21], "begin_suppress_tokens": [5]},
    "several ends": {"eos_token_id": [2, 20, 40]},
    "penalty": {"repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [43, 43], [29, 29, 12]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}
TF_ONLY = {"several ends", "penalty", "n-grams", "bad words", "contrastive"}
"""What the package's Flax class does not take, ignores, or (n-grams) cannot run on
current releases of JAX."""


@pytest.mark.parametrize("framework", ["tf", "flax"])
@pytest.mark.parametrize("what", OPTIONS)
def test_options(reference, framework, what, tmp_path):
    if framework == "flax" and what in TF_ONLY:
        pytest.skip("the package's Flax class has no such option")
    theirs, ours = both(reference, framework, tmp_path, "pre-LN", 7)
    ids = tokens(ours.config, 3, 6, seed=1)
    mask = np.ones_like(ids)
    options = {"max_new_tokens": 12, **OPTIONS[what]}
    expected, _ = sequences(theirs, ids, mask, **options)
    actual, _ = sequences(ours, ids, mask, **options)
    assert actual.tolist() == expected.tolist()


def test_the_generation_configuration_is_read_both_ways(reference, tmp_path):
    theirs = reference.GenerationConfig(
        max_new_tokens=7,
        min_length=3,
        num_beams=3,
        num_return_sequences=2,
        early_stopping="never",
        length_penalty=0.5,
        do_sample=True,
        temperature=0.7,
        top_k=9,
        top_p=0.8,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        bad_words_ids=[[5], [6, 7]],
        suppress_tokens=[4],
        begin_suppress_tokens=[6],
        forced_bos_token_id=2,
        forced_eos_token_id=2,
        eos_token_id=[2, 9],
        pad_token_id=1,
        bos_token_id=2,
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GenerationConfig.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = reference.GenerationConfig.from_pretrained(tmp_path / "ours")
    for name, value in ours.to_dict().items():
        assert getattr(theirs, name, value) == value, name
        assert getattr(again, name, value) == value, name


def test_the_text_generation_pipeline_takes_our_model(reference, tmp_path):
    import tokenizers
    from optserve.models.examples import train_tiny
    from optserve.models.tokenizer import Tokenizer

    folder = Path(train_tiny.__file__).parents[1] / "tiny_shakespeare"
    ours = Tokenizer.from_directory(folder)
    tokenizer = reference.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(ours.to_json()),
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )
    model = KIND["tf"].cls.from_pretrained(folder)
    pipeline = reference.pipeline(
        "text-generation", model=model, tokenizer=tokenizer, framework="tf"
    )
    prompts = ["ROMEO:", "JULIET, my"]
    options = {"max_new_tokens": 8, "do_sample": False}
    for prompt, actual in zip(prompts, pipeline(prompts, **options), strict=True):
        new = model.generate([ours.encode(prompt)], **options)
        assert actual[0]["generated_text"] == ours.decode(new[0].numpy())


def test_scores_of_each_token(reference, tmp_path):
    import tensorflow as tf

    theirs, ours = both(reference, "tf", tmp_path, "pre-LN", 3)
    ids = tf.constant(tokens(ours.config, 2, 5), tf.int32)
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 7}):
        options |= {"output_scores": True, "return_dict_in_generate": True}
        options |= {"max_new_tokens": 4, "seed": [3, 4]}
        expected = theirs.generate(ids, **options)
        actual = ours.generate(ids, **options)
        assert type(actual).__name__ == type(expected).__name__
        assert len(actual.scores) == len(expected.scores)
        kept = 1 if options.get("do_sample") else None  # they draw other tokens then
        for a, b in list(zip(actual.scores, expected.scores, strict=True))[:kept]:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        if "num_beams" in options:
            assert actual.beam_indices.numpy().tolist() == (
                expected.beam_indices.numpy().tolist()
            )


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 4}], ids=str
)
def test_attentions_of_each_token(reference, options, tmp_path):
    """Its hidden states it forgets: a branch of its code can't be reached."""
    import tensorflow as tf

    theirs, ours = both(reference, "tf", tmp_path, "post-LN, projections", 3)
    ids = tf.constant(tokens(ours.config, 2, 5), tf.int32)
    options |= {"output_attentions": True, "return_dict_in_generate": True}
    actual, expected = (
        m.generate(ids, max_new_tokens=4, **options) for m in (ours, theirs)
    )
    assert len(actual.attentions) == len(expected.attentions)
    for mine, right_ones in zip(actual.attentions, expected.attentions, strict=True):
        for a, b in zip(mine, right_ones, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
