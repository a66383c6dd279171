"""Sizes from the configuration, against the published parameter counts."""

from __future__ import annotations

import pytest
from optserve.export.footprint import parameter_count, serving_bytes, weights_bytes

# hidden, layers, heads, ffn, embedding; parameters as counted on the released models.
PUBLISHED = {
    "125m": (768, 12, 12, 3072, 768, 125_239_296),
    "350m": (1024, 24, 16, 4096, 512, 331_196_416),
    "1.3b": (2048, 24, 32, 8192, 2048, 1_315_758_080),
    "2.7b": (2560, 32, 32, 10240, 2560, 2_651_596_800),
    "6.7b": (4096, 32, 32, 16384, 4096, 6_658_473_984),
}


def config(name: str) -> dict:
    hidden, layers, heads, inner, embed, _ = PUBLISHED[name]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": inner,
        "word_embed_proj_dim": embed,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": name != "350m",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    assert parameter_count(config(name)).total == PUBLISHED[name][-1]


def test_weight_types():
    count = parameter_count(config("125m"))
    assert weights_bytes(config("125m")) == 4 * count.total
    bfloat16 = weights_bytes(config("125m"), "bfloat16")
    assert bfloat16 == 2 * count.matrices + 4 * count.other
    int8 = weights_bytes(config("125m"), "int8")
    assert count.total < int8 < 1.1 * count.total


def test_int4_is_half_of_int8_in_the_layers_alone():
    in_layers = 24 * (4 * 2048 * 2048 + 2 * 2048 * 8192)
    rows = 24 * (5 * 2048 + 8192)
    saved = in_layers // 2 - in_layers // 16 + 4 * rows  # 2 bytes for each 32
    int8 = weights_bytes(config("1.3b"), "int8")
    assert weights_bytes(config("1.3b"), "int4") == int8 - saved


def test_an_untied_head_counts():
    tied, untied = config("125m"), {**config("125m"), "tie_word_embeddings": False}
    head = 50272 * 768
    assert parameter_count(untied).total == parameter_count(tied).total + head


def test_serving_needs_more_than_two_versions():
    assert serving_bytes(config("1.3b")) > 2 * weights_bytes(config("1.3b"))
    slots = {"slots": 16, "positions": 1024}
    full = 16 * 1024 * 24 * 2 * 2048 * 4
    grown = serving_bytes(config("1.3b"), versions=1, sessions=slots)
    assert grown == serving_bytes(config("1.3b"), versions=1) + full
    assert serving_bytes(config("1.3b"), weights="int8") < serving_bytes(config("1.3b"))
