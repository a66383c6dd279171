"""The configuration: defaults, presets, unknown keys, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle

import pytest
from optserve.models.config import OPTConfig
from optserve.models.config_checks import ConfigError
from optserve.models.generation.config import GenerationConfig
from optserve.models.presets import PRESETS
from optserve.models.weights import WeightsError, check_weights, weight_shapes

PARAMETERS = {
    "125m": 125_239_296,
    "350m": 331_196_416,
    "1.3b": 1_315_758_080,
    "2.7b": 2_651_596_800,
    "6.7b": 6_658_473_984,
    "13b": 12_853_473_280,
    "30b": 29_974_540_288,
    "66b": 65_719_701_504,
    "175b": 174_604_468_224,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets(name):
    config = OPTConfig.preset(name)
    sizes = map(math.prod, weight_shapes(config).values())
    assert sum(sizes) == PARAMETERS[name]
    assert config.ffn_dim == 4 * config.hidden_size
    assert set(PRESETS) == set(PARAMETERS)


def test_preset_names_and_changes():
    assert OPTConfig.preset("facebook/opt-125m") == OPTConfig()
    assert OPTConfig.preset("350M", dropout=0.0).dropout == 0.0
    with pytest.raises(ConfigError, match="there are 125m"):
        OPTConfig.preset("126m")


def test_defaults():
    config = OPTConfig()
    assert (config.vocab_size, config.hidden_size, config.ffn_dim) == (50272, 768, 3072)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 2, 2)
    assert config.word_embed_proj_dim == 768 and config.max_position_embeddings == 2048
    assert config.dropout == 0.1 and config.layerdrop == 0.0
    assert config.do_layer_norm_before and config.tie_word_embeddings
    assert OPTConfig(hidden_size=96, word_embed_proj_dim=None).embed_dim == 96


def test_golden_configs_survive(data_dir, tmp_path):
    for path in sorted((data_dir / "golden").glob("*/config.json")):
        config = OPTConfig.from_pretrained(path.parent)
        assert config == OPTConfig.from_pretrained(path)
        config.save_pretrained(tmp_path)
        assert OPTConfig.from_pretrained(tmp_path) == config
        written = json.loads((tmp_path / "config.json").read_text())
        assert written.items() >= json.loads(path.read_text()).items()


def test_unknown_keys():
    config = OPTConfig.from_dict({"torch_dtype": "float16", "model_type": "opt"})
    assert config.torch_dtype == "float16"
    assert config.to_dict()["torch_dtype"] == "float16"
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config and hash(again) == hash(config)
    with pytest.raises(AttributeError, match="no field 'nothing'"):
        _ = config.nothing


def test_hash_follows_changes():
    config = OPTConfig()
    before = hash(config)
    config.dropout = 0.3
    assert hash(config) != before and config != OPTConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 770}, "not a multiple of num_attention_heads 12"),
        ({"vocab_size": "50272"}, "vocab_size should be a whole number from 1 to"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers should be at most 10000"),
        ({"vocab_size": 10**18}, "vocab_size should be a whole number from 1 to"),
        ({"ffn_dim": "\x1b[31m" * 99}, r"ffn_dim should be .*, got '\\x1b\[31m.*…$"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"dropout": 1.0}, r"dropout should be in \[0, 1\), got 1.0"),
        ({"layerdrop": -0.1}, "layerdrop"),
        ({"init_std": float("nan")}, "init_std"),
        ({"activation_function": "swish"}, "one of relu, gelu"),
        ({"enable_bias": 1}, "true or false"),
        ({"pad_token_id": 60000}, "below vocab_size 50272"),
        ({"eos_token_id": 2.5}, "an integer or null"),
        ({"model_type": "bert"}, "'bert'"),
        ([], "JSON object"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        OPTConfig.from_dict(values)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b'"x"'])
def test_broken_files(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError):
        OPTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_regular_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read: is not a regular file"):
        OPTConfig.from_pretrained(tmp_path)


def test_an_endless_file(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is not a regular file"):
        OPTConfig.from_pretrained(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="has more than 16777216 bytes"):
        OPTConfig.from_pretrained(tmp_path / "large")


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        OPTConfig.from_pretrained(tmp_path)


def test_check_weights():
    expected = {"a": (2, 3), "b": (4,)}
    good = {**expected, "lm_head.weight": (9, 9)}
    assert check_weights(expected, good, source="x") == {"a", "b"}
    bad = {"a": (3, 2), "c": (1,)}
    with pytest.raises(WeightsError) as caught:
        check_weights(expected, bad, source="x")
    for part in ("1 missing: b", "1 extra: c", "a (expected (2, 3), got (3, 2))"):
        assert part in str(caught.value)


def test_by_position_in_the_documented_order_and_unknown_names():
    config = OPTConfig(61, 24, 2, 40, 32, num_attention_heads=3, my_key=7)
    assert (config.vocab_size, config.max_position_embeddings) == (61, 32)
    assert config.my_key == 7 and OPTConfig(**config.to_dict()) == config
    for wrong in (lambda: OPTConfig(1, vocab_size=2), lambda: OPTConfig(*range(99))):
        with pytest.raises(TypeError, match="vocab_size"):
            wrong()


def test_changed_in_place(tmp_path):
    config = OPTConfig(model_type="opt")
    config.vocab_size, config.my_key = 99, [1]
    config.update({"dropout": 0.5, "other": None})
    config.save_pretrained(tmp_path)
    again = OPTConfig.from_pretrained(tmp_path)
    assert again == config and again.dropout == 0.5 and again.my_key == [1]
    assert json.loads(config.to_json_string()) == config.to_dict()
    with pytest.raises(ConfigError, match="hidden_size"):
        config.update({"vocab_size": 50, "hidden_size": 5})
    assert config.vocab_size == 99 and config.model_type == "opt"
    with pytest.raises(ConfigError, match="extra"):
        OPTConfig.from_dict({"extra": 3})


def test_files_and_dicts_as_transformers_has_them(tmp_path):
    config = OPTConfig(num_hidden_layers=3, somebody="else")
    config.to_json_file(tmp_path / "a.json")
    assert OPTConfig.from_json_file(tmp_path / "a.json") == config
    difference = {"model_type": "opt", "num_hidden_layers": 3, "somebody": "else"}
    assert config.to_diff_dict() == difference
    config.to_json_file(tmp_path / "b.json", use_diff=True)
    assert json.loads((tmp_path / "b.json").read_text()) == difference
    values, rest = OPTConfig.get_config_dict(tmp_path / "b.json", unknown=1)
    assert (values, rest) == (difference, {"unknown": 1})


def test_unused_arguments_are_given_back(tmp_path):
    OPTConfig().save_pretrained(tmp_path)
    config, rest = OPTConfig.from_pretrained(
        tmp_path, return_unused_kwargs=True, dropout=0.2, unknown=1
    )
    assert config.dropout == 0.2
    assert rest == {"unknown": 1}
    assert OPTConfig.from_dict({}, return_unused_kwargs=True, a=1)[1] == {"a": 1}


def test_labels_and_what_every_configuration_has():
    config = OPTConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.num_labels == 3 and config.label2id["LABEL_2"] == 2
    again = OPTConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config and again.id2label == config.id2label
    config.id2label = {0: "no", 1: "yes"}
    assert config.num_labels == 2 and config.label2id == {"no": 0, "yes": 1}
    assert OPTConfig().num_labels == 2
    assert not OPTConfig().is_encoder_decoder


def test_torch_dtype_is_a_name():
    class Dtype:
        """As ``torch.float16`` prints itself."""

        def __str__(self):
            return "torch.float16"

    for value in ("float16", "torch.float16", Dtype()):
        config = OPTConfig(torch_dtype=value)
        assert config.torch_dtype == "float16"
        assert json.loads(config.to_json_string())["torch_dtype"] == "float16"


def test_generation_defaults_are_attributes():
    config = OPTConfig(max_length=30, do_sample=True)
    assert config.max_length == 30
    assert GenerationConfig.from_model_config(config).max_length == 30
    assert GenerationConfig.from_model_config(config).do_sample
