"""Checks of call forms and methods that users of Transformers' classes know."""

from __future__ import annotations

import json
from collections import UserDict

import numpy as np
import pytest

from . import numpy_opt
from .conformance import feature
from .kinds import (
    ONE_LAYER,
    checkpoint,
    close,
    padded,
    small_config,
    tokens,
    write_checkpoint,
)
from .loading import expected, loaded, native

SURFACE = "Known surface"


@feature(SURFACE, "`token_type_ids`: keyword, in a mapping, third in a list", "tf")
def token_types(kind, base):
    model, config = loaded(kind, base)
    ids = native(kind, tokens(config, 2, 5).astype(np.int32))
    mask = native(kind, padded([5, 3], 5, "left").astype(np.int32))
    expected = kind.value(model, ids, attention_mask=mask)
    types = mask * 0
    close(model(ids, attention_mask=mask, token_type_ids=types)[0], expected)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    close(model(given)[0], expected)
    close(model([ids, mask, types])[0], expected)


@feature(SURFACE, "options in a mapping, any mapping (`BatchEncoding`)", "tf")
def mappings(kind, base):
    model, config = loaded(kind, base, "pre-LN")
    ids = tokens(config, 2, 5)
    given = {"input_ids": ids, "use_cache": False, "output_attentions": True}
    output = model(UserDict(given))
    assert output.past_key_values is None and len(output.attentions) == 2
    close(output[0], kind.value(model, ids))
    actual = model.predict(UserDict({"input_ids": ids}), verbose=0)
    close(actual[kind.main], kind.value(model, ids))


@feature(
    SURFACE,
    '`fit`, `evaluate`, `…_on_batch` of any mapping; `compile(loss="passthrough")`',
    "tf",
    head=True,
)
def fitted_mapping(kind, base):
    import keras

    model, config = loaded(kind, base)
    ids = tokens(config, 4, 5)
    batch = UserDict({"input_ids": ids, "labels": ids, "token_type_ids": ids * 0})
    loss = numpy_opt.loss(expected(config, ids, name=ONE_LAYER)["logits"], ids)
    for own in ("passthrough", "auto", None):  # all mean the model's own
        model.compile("sgd", own, run_eagerly=own is not None, jit_compile=False)
        assert model.evaluate(batch, verbose=0) == pytest.approx(loss, rel=1e-5)
    assert model.test_on_batch(batch) == pytest.approx(loss, rel=1e-5)
    close(model.predict_on_batch(batch).logits, kind.value(model, ids))
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    assert model.train_on_batch(batch) == pytest.approx(loss, rel=1e-5)
    assert model.fit(batch, verbose=0).history["loss"][0] == pytest.approx(loss, 1e-5)


@feature(SURFACE, "`sample_weight` as Keras means it", "tf", head=True)
def weighed(kind, base):
    import keras

    model, config = loaded(kind, base)
    ids = tokens(config, 4, 5)
    labels = np.where(np.arange(5) < 4, ids, -100)
    weights = np.array([1.0, 0.0, 2.0, 0.5])
    logits = expected(config, ids, name=ONE_LAYER)["logits"][:, :3].astype(np.float32)
    of_keras = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    mean = float(of_keras(labels[:, 1:4], logits, weights[:, None]))
    for x, y, eagerly in (
        ({"input_ids": ids}, {"labels": labels}, True),
        ({"input_ids": ids}, labels, True),
        ({"input_ids": ids, "labels": labels}, labels, False),
    ):
        optimizer = keras.optimizers.SGD(0.0)
        model.compile(optimizer, jit_compile=False, run_eagerly=eagerly)
        options = {"sample_weight": weights, "verbose": 0, "batch_size": 4}
        assert model.evaluate(x, y, **options) == pytest.approx(mean, rel=1e-5)
        actual = model.fit(x, y, **options).history["loss"]
        assert actual == [pytest.approx(mean, rel=1e-5)]
    model.compile("sgd", run_eagerly=True)
    each = np.repeat(weights[:, None], 5, 1)
    actual = model.evaluate(x, labels, sample_weight=each, verbose=0, batch_size=4)
    assert actual == pytest.approx(mean, rel=1e-5)


@feature(SURFACE, "`prepare_tf_dataset`", "tf", head=True)
def dataset(kind, base):
    model, _ = loaded(kind, base)
    rows = [list(range(3, 5 + i)) for i in range(5)]
    examples = [{"input_ids": row, "labels": row, "no": [1]} for row in rows]
    batches = model.prepare_tf_dataset(examples, batch_size=2, shuffle=False)
    assert len(batches) == 3
    (first, labels), *_, (last, _) = list(batches)
    assert first["input_ids"].numpy().tolist() == [[3, 4, 1], [3, 4, 5]]
    assert first["attention_mask"].numpy().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert labels.numpy().tolist() == [[3, 4, -100], [3, 4, 5]]
    assert last["input_ids"].shape == (1, 6)
    assert len(model.prepare_tf_dataset(examples, batch_size=2)) == 2


@feature(SURFACE, "`prune_heads`: as a head mask of 0, kept by files", "tf")
def pruned(kind, base, tmp_path):
    model, config = loaded(kind, base, "pre-LN")
    ids, mask = tokens(config, 2, 5), np.ones([2, 3], np.float32)
    mask[0, 1] = mask[1, 2] = 0
    expected = kind.value(model, ids, head_mask=mask)
    model.prune_heads({0: [1]})
    model.prune_heads({1: [2]})
    close(kind.value(model, ids), expected)
    model.save_pretrained(tmp_path)
    again = kind.cls.from_pretrained(tmp_path)
    close(kind.value(again, ids), expected)
    assert again.config.pruned_heads == {"0": [1], "1": [2]}
    with pytest.raises(ValueError, match="2 layers of 3 heads"):
        model.prune_heads({2: [0]})


@feature(
    SURFACE,
    "`serving`, `input_signature`, `.model.decoder.layers`, `set_…_embeddings` …",
    "tf",
)
def methods(kind, base):
    model, config = loaded(kind, base, "pre-LN")
    ids = native(kind, tokens(config, 2, 5).astype(np.int32))
    given = {"input_ids": ids, "attention_mask": ids * 0 + 1}
    assert given.keys() == model.input_signature.keys()
    served = model.serving(given)
    close(served[kind.main], kind.value(model, ids))
    assert served["past_key_values"].shape == (2, 2, 2, 3, 5, 8)
    assert len(model.model.decoder.layers) == 2
    assert model.get_layer("model").embed_tokens is model.get_input_embeddings()
    assert model.get_layer("decoder.layers.1") is model.model.decoder.layers[1]
    assert (model.get_lm_head() is None) == (not kind.head)
    assert model.get_bias() is None
    assert model.name_or_path == str(checkpoint(base, "pre-LN"))
    other = kind.cls.from_config(model.config)
    other.set_input_embeddings(model.get_input_embeddings().weight)
    table = other.get_input_embeddings().weight.value().numpy()  # as of Keras 2
    assert (table == np.asarray(model.get_input_embeddings().weight)).all()
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        other.set_input_embeddings(np.zeros([2, 2]))
    assert kind.cls.can_generate() == kind.head
    if kind.head:
        other.set_output_embeddings(np.full_like(table, 0.5))
        assert (np.asarray(other.get_output_embeddings().weight) == 0.5).all()
    else:
        with pytest.raises(ValueError, match="no head"):
            other.set_output_embeddings(table)


@feature(SURFACE, "`enable_gradient_checkpointing`, whole numbers as floats", "flax")
def flax_methods(kind, base):
    model, config = loaded(kind, base)
    ids = tokens(config, 4, 9)
    expected = kind.value(model, ids)
    model.enable_gradient_checkpointing()
    assert model.module.remat
    close(kind.value(model, ids.astype(np.float32)), expected)


@feature(
    SURFACE,
    "`params` and `save_pretrained(params=…)` name what is missing or does not fit",
    "flax",
)
def missing_params(kind, base, tmp_path):
    model, _ = loaded(kind, base)
    root = dict(model.params["model"] if kind.head else model.params)
    decoder = dict(root["decoder"])
    del decoder["embed_positions"]
    params = {"decoder": decoder}
    params = {"model": params} if kind.head else params
    with pytest.raises(ValueError, match="decoder/embed_positions/embedding"):
        model.save_pretrained(tmp_path / "out", params=params)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="decoder/embed_positions/embedding"):
        model.params = params
    model.params = {**model.params, "more": np.zeros(1)}  # as upstream's setter
    decoder = {**root["decoder"], "embed_positions": {"embedding": np.zeros([2, 2])}}
    params = {"model": {"decoder": decoder}} if kind.head else {"decoder": decoder}
    fault = r"embed_positions/embedding in params should have the shape \(34, 24\)"
    with pytest.raises(ValueError, match=fault):
        model(np.array([[3]]), params=params)


@feature(
    SURFACE, "options of `from_pretrained` that older code gives; `ignore_missing`"
)
def options(kind, base, tmp_path):
    directory = write_checkpoint(tmp_path / "in", small_config())
    model = kind.cls.from_pretrained(
        directory,
        proxies={},
        mirror=None,
        use_auth_token="hf_t",
        _commit_hash="0",
        torch_dtype="float16",
        local_files_only=True,
        low_cpu_mem_usage=True,
    )
    assert model.config == small_config()
    config = json.loads((directory / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing"):
        kind.cls.from_pretrained(directory)
    with pytest.warns(UserWarning, match=r"layers\.2\.fc1\.weight"):
        model = kind.cls.from_pretrained(directory, ignore_missing=True)
    ids = tokens(small_config(), 2, 4)
    assert np.isfinite(kind.value(model, ids)).all()
