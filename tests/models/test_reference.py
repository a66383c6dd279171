"""Both frameworks against Transformers itself, beyond what golden/ holds."""

from __future__ import annotations

import numpy as np
import pytest

from .features_files import named
from .features_training import gradients
from .kinds import CONFIGS, KINDS, close, padded, small_config, tokens, write_checkpoint

pytestmark = pytest.mark.reference

HEADS = [KINDS["TFOPTForCausalLM"], KINDS["FlaxOPTForCausalLM"]]


def torch_model(directory):
    """Transformers' PyTorch class with a checkpoint of ours."""
    transformers = pytest.importorskip("transformers")
    return transformers.OPTForCausalLM.from_pretrained(
        directory, attn_implementation="eager"
    )


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A checkpoint of ours and Transformers' model of it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory, small_config(request.param))
    return directory, torch_model(directory).eval()


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.framework)
@pytest.mark.parametrize("side", ["left", "right", "middle", "scattered"])
def test_outputs(pair, kind, side):
    import torch

    directory, reference = pair
    model = kind.cls.from_pretrained(directory)
    ids, mask = tokens(model.config, 4, 10), padded([10, 7, 3, 1], 10, side)
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = reference(torch.tensor(ids), torch.tensor(mask), **options)
    actual = kind.call(model, ids, attention_mask=mask, **options)
    keep = mask.astype(bool)
    close(actual["logits"], expected.logits, keep)
    pairs = zip(actual["hidden_states"], expected.hidden_states, strict=True)
    for states, right_ones in pairs:
        close(states, right_ones, keep)
    pairs = zip(actual["attentions"], expected.attentions, strict=True)
    for probs, right_ones in pairs:
        close(probs.swapaxes(1, 2), right_ones.numpy().swapaxes(1, 2), keep)


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.framework)
def test_gradients(pair, kind):
    import torch

    directory, reference = pair
    model = kind.cls.from_pretrained(directory)
    ids, mask = tokens(model.config, 3, 7), padded([7, 4, 2], 7, "left")
    actual = gradients(kind, model, ids, mask)
    reference.zero_grad()
    logits = reference(torch.tensor(ids), torch.tensor(mask)).logits
    (torch.sin(logits) * torch.tensor(mask)[..., None]).sum().backward()
    expected = {
        name.removeprefix("model."): weight.grad.numpy()
        for name, weight in reference.named_parameters()
    }
    scale = max(np.abs(grad).max() for grad in expected.values())
    assert actual.keys() == expected.keys()
    pad = model.config.pad_token_id
    for name, grad in actual.items():
        if name == "decoder.embed_tokens.weight" and pad is not None:
            # PyTorch keeps gradients out of the padding row; masked, it has none here.
            grad, expected[name] = (
                np.delete(g, pad, 0) for g in (grad, expected[name])
            )
        assert np.abs(grad - expected[name]).max() <= 3e-5 * scale, name


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.framework)
def test_the_reference_reads_ours_and_we_read_its(pair, kind, tmp_path):
    import torch

    directory, reference = pair
    ours = kind.cls.from_pretrained(directory)
    ours.save_pretrained(tmp_path / "ours")
    ids = tokens(ours.config, 2, 6)
    with torch.no_grad():
        actual = torch_model(tmp_path / "ours").eval()(torch.tensor(ids)).logits
    close(actual, kind.value(ours, ids))
    reference.save_pretrained(tmp_path / "theirs")
    again = kind.cls.from_pretrained(tmp_path / "theirs")
    mine = named(kind, ours)
    for name, value in named(kind, again).items():
        assert (value == mine[name]).all()


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.framework)
def test_other_inputs(pair, kind):
    """Embeddings, positions, labels: what PyTorch's class takes too.

    It takes a head mask as well, and ignores it; TensorFlow's class has that.
    """
    import torch

    directory, reference = pair
    model = kind.cls.from_pretrained(directory)
    config = model.config
    ids, mask = tokens(config, 3, 8), padded([8, 5, 2], 8, "left")
    keep = mask.astype(bool)
    positions = np.random.default_rng(0).integers(0, 32, [3, 8])
    embeds = np.random.default_rng(1).normal(size=(3, 8, config.embed_dim))
    labels = np.where(keep, ids, -100)
    cases = [{"input_ids": ids, "position_ids": positions}]
    if kind.framework == "tf":
        embeds = embeds.astype(np.float32)
        cases += [
            {"inputs_embeds": embeds, "attention_mask": mask},
            {"input_ids": ids, "labels": labels, "attention_mask": mask},
        ]
    for inputs in cases:
        with torch.no_grad():
            expected = reference(**{k: torch.tensor(v) for k, v in inputs.items()})
        actual = kind.call(model, **inputs)
        everything = np.ones_like(keep)
        close(
            actual["logits"],
            expected.logits,
            keep if "attention_mask" in inputs else everything,
        )
        if "labels" in inputs:
            assert actual["loss"].mean() == pytest.approx(
                float(expected.loss), rel=3e-5
            )


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.framework)
def test_cached_continuation(pair, kind):
    import torch

    directory, reference = pair
    model = kind.cls.from_pretrained(directory)
    ids = tokens(model.config, 2, 9)
    with torch.no_grad():
        first = reference(torch.tensor(ids[:, :6]), use_cache=True)
        expected = reference(
            torch.tensor(ids[:, 6:]), past_key_values=first.past_key_values
        ).logits
    cache, inputs = None, [{}, {}]
    if kind.framework == "flax":
        cache, full = model.init_cache(2, 12), np.ones([2, 12], int)
        at = np.tile(np.arange(9), [2, 1])
        inputs = [
            {"attention_mask": full, "position_ids": at[:, part]}
            for part in (slice(6), slice(6, 9))
        ]
    cache = model(ids[:, :6], past_key_values=cache, **inputs[0]).past_key_values
    actual = model(ids[:, 6:], past_key_values=cache, **inputs[1])
    close(actual.logits, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.framework)
def test_16_bits(pair, kind, dtype):
    """On average as far from float32 as Transformers' PyTorch class, or closer."""
    import torch
    import transformers

    directory, reference = pair
    other = transformers.OPTForCausalLM.from_pretrained(
        directory, attn_implementation="eager", torch_dtype=getattr(torch, dtype)
    )
    model = kind.cls.from_pretrained(directory, dtype=dtype)
    ids = tokens(model.config, 30, 8)
    mask = padded([8, 5, 2] * 10, 8, "left")
    keep = mask.astype(bool)
    given = torch.tensor(ids), torch.tensor(mask)
    with torch.no_grad():
        exact = reference(*given).logits.numpy()[keep]
        theirs = other(*given).logits.float().numpy()[keep]
    ours = kind.value(model, ids, attention_mask=mask).astype(np.float32)[keep]
    limit = {"bfloat16": 2e-2, "float16": 3e-3}[dtype] * np.abs(exact).max()
    assert np.abs(ours - exact).max() <= max(2 * np.abs(theirs - exact).max(), limit)
    assert np.square(ours - exact).mean() ** 0.5 <= 1.2 * (
        np.square(theirs - exact).mean() ** 0.5
    )
