"""Checks of constructors, weights, and files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from optserve.models import WeightsError
from optserve.models.checkpoints import open_weights, save_weights
from optserve.models.push import PushError

from .checkpoints.hub_server import HubServer
from .conformance import feature
from .kinds import (
    CONFIGS,
    FEW,
    KINDS,
    ONE_LAYER,
    OPTConfig,
    checkpoint,
    close,
    random_weights,
    small_config,
    tokens,
    write_checkpoint,
)
from .loading import loaded

WEIGHTS, FILES = "Weights", "Files"


def named(kind, model) -> dict:
    """A model's weights by canonical name, dense weights [out, in]."""
    if kind.framework == "tf":
        return {name: v.numpy() for name, v in model.named_weights().items()}
    from flax.traverse_util import flatten_dict
    from optserve.models.flax.params import tree_path
    from optserve.models.weights import weight_shapes

    tree = flatten_dict(model.params)
    weights = {}
    for name in weight_shapes(model.config, head=kind.head):
        path = tree_path(name, head=kind.head)
        value = np.asarray(tree.pop(path))
        weights[name] = value.T if path[-1] == "kernel" else value
    assert not tree
    return weights


@feature(WEIGHTS, "fresh weights: `init_std` everywhere, padding row zero")
def fresh(kind, base):
    config = small_config("untied, projections", hidden_size=96, init_std=0.07)
    weights = named(kind, kind.cls(config))
    seen = set()
    for name, value in weights.items():
        if name.endswith(".bias"):
            assert not value.any()
        elif name.endswith("norm.weight"):
            assert (value == 1).all()
        else:
            if name == "decoder.embed_tokens.weight":
                assert not value[config.pad_token_id].any()
                value = np.delete(value, config.pad_token_id, 0)
            assert value.std() == pytest.approx(0.07, rel=0.12)
            assert abs(value.mean()) < 0.02
            seen.add(float(value.flat[-1]))
    drawn = [n for n in weights if n.endswith("weight") and "norm" not in n]
    assert len(seen) == len(drawn)  # no two weights drew the same numbers


@feature(WEIGHTS, "no biases, affine-free norms, untied heads, projections")
def structure(kind, base):
    for name in CONFIGS:
        config = small_config(name)
        actual = {n: w.shape for n, w in named(kind, kind.cls(config)).items()}
        expected = {n: w.shape for n, w in random_weights(config).items()}
        if not kind.head:
            expected.pop("lm_head.weight", None)
        assert actual == expected


@feature(WEIGHTS, "Transformers' names in `.params`", "flax")
def tree(kind, base):
    model, _ = loaded(kind, base)
    root = model.params["model"] if kind.head else model.params
    layer = root["decoder"]["layers"]["0"]
    assert layer["fc1"]["kernel"].shape == (24, 40)
    assert set(layer["self_attn_layer_norm"]) == {"scale", "bias"}
    assert set(root["decoder"]["embed_tokens"]) == {"embedding"}
    assert model.num_parameters() == sum(w.size for w in named(kind, model).values())
    with pytest.raises(ValueError, match="lacks"):
        model.params = {}


@feature(WEIGHTS, "`_do_init=False`, `init_weights`", "flax")
def lazy(kind, base):
    model = kind.cls(small_config(), _do_init=False)
    with pytest.raises(ValueError, match="_do_init"):
        _ = model.params
    import jax

    params = model.init_weights(jax.random.PRNGKey(0), (1, 1))
    ids = tokens(model.config, 4, 9)
    assert model(ids, params=params)[0].shape[:2] == (4, 9)
    path = checkpoint(base, "pre-LN")
    empty, loaded_params = kind.cls.from_pretrained(path, _do_init=False)
    full = kind.cls.from_pretrained(path)
    close(empty(ids, params=loaded_params)[0], full(ids)[0])
    kept = {"model": params["model"]} if kind.head else params
    assert jax.tree.map(np.shape, empty.params_shape_tree) == jax.tree.map(
        np.shape, loaded_params
    )
    again = empty.init_weights(jax.random.PRNGKey(9), (1, 1), params=kept)
    close(empty(ids, params=again)[0], empty(ids, params=params)[0])


@feature(WEIGHTS, "`to_bf16`, `to_fp16`, `to_fp32`, with masks", "flax")
def conversions(kind, base):
    import jax
    import jax.numpy as jnp

    model, _ = loaded(kind, base)
    for name, dtype in (("to_bf16", jnp.bfloat16), ("to_fp16", jnp.float16)):
        params = getattr(model, name)(model.params)
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        back = model.to_fp32(params)
        assert {x.dtype for x in jax.tree.leaves(back)} == {jnp.dtype("float32")}
    mask = jax.tree_util.tree_map_with_path(
        lambda path, x: path[-1].key != "scale", model.params
    )
    mixed = model.to_bf16(model.params, mask)
    dtypes = {
        path[-1].key: x.dtype.name
        for path, x in jax.tree_util.tree_leaves_with_path(mixed)
    }
    assert dtypes["scale"] == "float32" and dtypes["kernel"] == "bfloat16"
    assert model(tokens(model.config, 4, 9), params=mixed)[0].dtype == jnp.float32


@feature(WEIGHTS, "`resize_token_embeddings`: old rows stay, the head follows")
def resize(kind, base):
    for name in (ONE_LAYER, "untied, projections"):
        for size in (70, 40):
            model, config = loaded(kind, base, name)
            ids = tokens(config, 4, 9) % 40
            before = kind.value(model, ids)
            model.resize_token_embeddings(size)
            assert model.config.vocab_size == size
            model.resize_token_embeddings()  # changes nothing
            after = kind.value(model, ids)
            if kind.head:
                assert after.shape[-1] == size
                kept = min(size, 61)
                before, after = before[..., :kept], after[..., :kept]
            close(after, before)
            if size == 70:
                new = named(kind, model)["decoder.embed_tokens.weight"][61:]
                assert new.std() == pytest.approx(0.3, rel=0.3)
                kind.value(model, np.full_like(ids, 69))


# --- files --------------------------------------------------------------------------


@feature(FILES, "`save_pretrained` and `from_pretrained` give the same model back")
def round_trip(kind, base, tmp_path):
    for name in FEW:
        model, config = loaded(kind, base, name)
        model.save_pretrained(tmp_path / name)
        again = kind.cls.from_pretrained(tmp_path / name)
        assert again.config == config
        ids = tokens(config, 4, 9)
        assert (kind.value(again, ids) == kind.value(model, ids)).all()


@feature(FILES, "safetensors, `.h5`, `.msgpack`, whole and sharded")
def formats(kind, base, tmp_path):
    for name in (ONE_LAYER, "post-LN, projections"):
        model, _ = loaded(kind, base, name)
        mine = named(kind, model)
        for format in ("safetensors", "h5", "msgpack"):
            for limit in ("5GB", "20KB"):
                out = tmp_path / name / format / limit
                model.save_pretrained(out, format=format, max_shard_size=limit)
                weights = {p.name for p in out.iterdir()} - {"generation_config.json"}
                assert (len(weights) > 2) == (limit == "20KB")
                again = named(kind, kind.cls.from_pretrained(out))
                assert all((again[k] == v).all() for k, v in mine.items())
    native_name = {"tf": "tf_model.h5", "flax": "flax_model.msgpack"}[kind.framework]
    model.save_pretrained(tmp_path / "native", safe_serialization=False)
    assert (tmp_path / "native" / native_name).exists()
    model.save_pretrained(tmp_path / "safe", safe_serialization=True)
    assert (tmp_path / "safe" / "model.safetensors").exists()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(PushError, match="native was not uploaded to the hub"),
    ):
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
        model.save_pretrained(tmp_path / "native", push_to_hub=True)
    with pytest.raises(TypeError, match="'sharded'"):
        model.save_pretrained(tmp_path / "native", sharded=True)


@feature(FILES, "`push_to_hub`, `save_pretrained(push_to_hub=True)` to a loopback hub")
def uploaded(kind, base, tmp_path):
    model, config = loaded(kind, base, "pre-LN")
    with HubServer({}) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        model.push_to_hub("somebody/new", use_auth_token="hf_t", use_temp_dir=True)
        options = {"push_to_hub": True, "repo_id": "somebody/same", "token": "hf_t"}
        model.save_pretrained(tmp_path / "out", **options)
    assert {token for method, _, token in hub.requests if method == "POST"} == {"hf_t"}
    assert hub.uploaded["somebody/new"] == hub.uploaded["somebody/same"]
    for name, content in hub.uploaded["somebody/new"].items():
        (tmp_path / name).write_bytes(content)
    again = kind.cls.from_pretrained(tmp_path)
    ids = tokens(config, 4, 9)
    close(kind.value(again, ids), kind.value(model, ids), tolerance=0)


@feature(FILES, "`config` as an object or a path; `subfolder`; needless options")
def options(kind, base, tmp_path):
    path = checkpoint(base, "pre-LN")
    config = small_config(dropout=0.25)
    config.save_pretrained(tmp_path)
    shutil.copytree(path, tmp_path / "a" / "b")
    for given in (
        {"config": config},
        {"config": tmp_path},
        {"config": str(tmp_path / "config.json")},
        {"config": config, "from_pt": True, "trust_remote_code": False},
    ):
        assert kind.cls.from_pretrained(path, **given).config.dropout == 0.25
    model = kind.cls.from_pretrained(tmp_path, subfolder="a/b")
    mine = named(kind, loaded(kind, base, "pre-LN")[0])
    assert all((v == mine[k]).all() for k, v in named(kind, model).items())
    assert OPTConfig.from_pretrained(tmp_path, subfolder="a/b").dropout == 0


@feature(FILES, "`tf.train.Checkpoint`", "tf")
def tf_checkpoint(kind, base, tmp_path):
    import tensorflow as tf

    model, config = loaded(kind, base, "untied")
    saved = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    again = kind.cls(config)
    tf.train.Checkpoint(model=again).restore(saved).assert_consumed()
    mine = named(kind, model)
    assert all((v == mine[k]).all() for k, v in named(kind, again).items())


@feature(FILES, "what one class writes, the others read")
def across(kind, base, tmp_path):
    model, _ = loaded(kind, base, "pre-LN")
    model.save_pretrained(tmp_path / "out", max_shard_size="20KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    mine = named(kind, model)
    for other in KINDS.values():
        theirs = named(other, other.cls.from_pretrained(tmp_path / "out"))
        for name, value in theirs.items():
            assert (value == mine[name]).all()


@feature(FILES, "missing, extra and mis-shaped weights, all named in one error")
def misfits(kind, base, tmp_path):
    config = small_config()
    weights = random_weights(config)
    del weights["decoder.layers.1.fc1.bias"]
    weights["decoder.layers.7.fc1.bias"] = np.zeros(40, np.float32)
    weights["decoder.layers.0.fc2.weight"] = np.zeros([24, 41], np.float32)
    write_checkpoint(tmp_path, config, weights)
    with pytest.raises(WeightsError) as caught:
        kind.cls.from_pretrained(tmp_path)
    for part in ("1 missing", "1.fc1.bias", "1 extra", "7.fc1.bias", "(24, 40)"):
        assert part in str(caught.value)


@feature(FILES, "`ignore_mismatched_sizes`")
def mismatched(kind, base, tmp_path):
    config = small_config()
    write_checkpoint(tmp_path, config)
    changed = small_config(max_position_embeddings=20)
    changed.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"expected \(22, 24\), got \(34, 24\)"):
        kind.cls.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="embed_positions"):
        model = kind.cls.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    actual, expected = named(kind, model), random_weights(config)
    table = "decoder.embed_positions.weight"
    assert actual[table].shape == (22, 24)
    if kind.framework == "tf":
        options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        with pytest.warns(UserWarning, match="embed_positions"):
            _, info = kind.cls.from_pretrained(tmp_path, **options)
        assert info == {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [(table, (34, 24), (22, 24))],
        }
    close(
        actual["decoder.embed_tokens.weight"], expected["decoder.embed_tokens.weight"]
    )


@feature(FILES, "fields of the configuration changed on loading")
def changes(kind, base):
    model, _ = loaded(kind, base, dropout=0.4, output_attentions=True)
    assert model.config.dropout == 0.4 and model.config.output_attentions
    with pytest.raises(TypeError, match="'droput'"):
        loaded(kind, base, droput=0.4)


@feature(FILES, "unknown keys of `config.json` are kept and written back")
def unknown_keys(kind, base, tmp_path):
    write_checkpoint(tmp_path / "in", small_config())
    path = tmp_path / "in" / "config.json"
    values = json.loads(path.read_text()) | {"my_key": {"a": [1]}}
    path.write_text(json.dumps(values))
    model = kind.cls.from_pretrained(tmp_path / "in")
    assert model.config.my_key == {"a": [1]}
    model.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["my_key"] == {"a": [1]}


@feature(FILES, "16-bit checkpoints: read as float32 by Keras, kept by Flax")
def halves(kind, base, tmp_path):
    import ml_dtypes

    config = small_config()
    for dtype in (np.float16, ml_dtypes.bfloat16):
        weights = {k: w.astype(dtype) for k, w in random_weights(config).items()}
        directory = write_checkpoint(tmp_path / str(np.dtype(dtype)), config, weights)
        model = kind.cls.from_pretrained(directory)
        actual = named(kind, model)
        for name, value in actual.items():
            expected = np.float32 if kind.framework == "tf" else dtype
            assert value.dtype == expected
            assert (value == weights[name]).all()
        assert kind.value(model, tokens(config, 4, 9)).dtype == np.float32


@feature(FILES, "a checkpoint without `lm_head` for a tied model, and with one")
def heads(kind, base, tmp_path):
    config = small_config()
    weights = random_weights(config)
    weights["lm_head.weight"] = weights["decoder.embed_tokens.weight"]
    write_checkpoint(tmp_path, config, weights)
    model, _ = loaded(kind, base, "pre-LN")
    ids = tokens(config, 4, 9)
    close(kind.value(kind.cls.from_pretrained(tmp_path), ids), kind.value(model, ids))


@feature(FILES, "Keras weight files, `.weights.h5` and `.keras`", "tf")
def keras_files(kind, base, tmp_path):
    import keras

    for name in (ONE_LAYER, "untied, projections"):
        model, config = loaded(kind, base, name)
        ids = tokens(config, 4, 9)
        model.save_weights(tmp_path / "m.weights.h5")
        again = kind.cls(config)
        again.load_weights(tmp_path / "m.weights.h5")
        close(kind.value(again, ids), kind.value(model, ids))
        model.save(tmp_path / "m.keras")
        again = keras.saving.load_model(tmp_path / "m.keras")
        assert isinstance(again, kind.cls) and again.config == config
        close(kind.value(again, ids), kind.value(model, ids))


@feature(FILES, "safetensors hold Transformers' names")
def stored_names(kind, base, tmp_path):
    from safetensors import safe_open

    model, _ = loaded(kind, base, "pre-LN")
    model.save_pretrained(tmp_path)
    prefix = "model." if kind.head else ""
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        stored = set(file.keys())
    assert f"{prefix}decoder.layers.0.self_attn.q_proj.weight" in stored
    assert stored == {prefix + name for name in open_weights(tmp_path)}
    assert save_weights  # the functions that the classes use are public
