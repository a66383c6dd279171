"""Test cases for an export, cache encodings, and the measuring of answers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from optserve.export.verify.cache import unpack
from optserve.export.verify.packed_sequences import PackedSequences
from optserve.export.verify.plan import Plan, Row, TestCase, fit, make_plan
from optserve.export.verify.report import measure
from optserve.export.verify.runner import interleaved
from optserve.export.verify.sampling import greedy_limits
from optserve.export.verify.tolerances import tolerance
from optserve.runtime.contract import CacheLayout, Manifest

ALL = [
    "serving_default",
    "prefill",
    "decode",
    "generate_4",
    "score",
    "embed",
    "describe",
    "tokenizer",
]


def manifest(**more) -> Manifest:
    values = {
        "config": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8},
        "framework": "tf",
        "compiler": "none",
        "weights_dtype": "float32",
        "cache_dtype": "float32",
        "signatures": ALL,
        "max_positions": 128,
        "vocab_size": 100,
    }
    return Manifest(**{**values, **more})


def by_signature(plan: Plan) -> dict[str, list[TestCase]]:
    cases: dict[str, list[TestCase]] = {}
    for case in plan.cases:
        cases.setdefault(case.signature, []).append(case)
    return cases


@pytest.mark.parametrize(
    "made_of",
    [
        manifest(),
        manifest(prompt_buckets=[16, 64], cache_buckets=[32, 128], batch_sizes=[1, 4]),
        manifest(max_positions=9),
        manifest(prompt_buckets=[8], cache_buckets=[16], max_positions=24),
    ],
)
def test_cases_fit_model_and_buckets(made_of):
    plan = make_plan(made_of)
    assert {q.signature for q in plan.cases} == set(ALL)
    for case in plan.cases:
        if case.signature in ("describe", "tokenizer"):
            continue
        longest = max(row.new for row in case.rows)
        assert 1 <= longest <= case.size
        cached = case.slots is not None
        sizes = [*made_of.prompt_buckets, 1] if cached else made_of.prompt_buckets
        assert not made_of.prompt_buckets or case.size in sizes
        assert (
            not cached
            or not made_of.cache_buckets
            or (case.slots in made_of.cache_buckets)
        )
        new_tokens = 4 if case.signature == "generate_4" else 0
        for row in case.rows:
            assert row.past + row.new + new_tokens <= made_of.max_positions
            assert not cached or row.past <= case.slots


def test_the_shapes_where_errors_hide():
    made_of = manifest(prompt_buckets=[16, 64], cache_buckets=[32, 128])
    asked = by_signature(make_plan(made_of))
    lengths = {q.rows[0].new for q in asked["prefill"] if len(q.rows) == 1}
    assert {1, 7, 16, 17, 64} <= lengths  # smallest, odd, edges, one more
    decode = asked["decode"]
    pasts = {q.rows[0].past for q in decode if len(q.rows) == 1}
    assert {0, 5, 32, 127} <= pasts  # empty, odd, a full bucket, full to the end
    for name in ("serving_default", "prefill", "decode", "generate_4", "score"):
        assert any(len(q.rows) > 1 for q in asked[name])
    assert any(q.left for q in asked["serving_default"])
    assert any({0} < {r.past for r in q.rows} for q in decode if len(q.rows) > 1)
    sizes = {
        len(q.rows)
        for q in by_signature(make_plan(manifest(batch_sizes=[1, 8])))["prefill"]
    }
    assert sizes == {1, 8}


def test_edges_of_what_a_graph_rounds_up_to():
    made_of = manifest(compiler="xla", compiled_prompts=[1, 16, 64])
    asked = by_signature(make_plan(made_of))
    for name in ("prefill", "score", "embed", "serving_default"):
        lengths = {q.rows[0].new for q in asked[name] if len(q.rows) == 1}
        assert {1, 7, 16, 17} <= lengths
    for name in ("decode", "generate_4"):
        pasts = {q.rows[0].past for q in asked[name]}
        assert {0, 64, 65} <= pasts
    assert all(q.size == max(r.new for r in q.rows) for q in asked["decode"])


def test_token_sequences_are_the_same_for_everyone():
    first, second = make_plan(manifest()), make_plan(manifest(framework="jax"))
    for a, b in zip(first.token_sequences, second.token_sequences, strict=True):
        np.testing.assert_array_equal(a, b)
    short = make_plan(manifest(), max_length=40)
    assert max(len(s) for s in short.token_sequences) <= 40


def test_a_large_model_is_tried_with_a_shorter_cache():
    large = {"num_hidden_layers": 24, "num_attention_heads": 32, "hidden_size": 2048}
    plan = make_plan(manifest(config=large, max_positions=2048))
    assert plan.length(0) == 256
    assert plan.notes == ("sequences of up to 256 of 2048 positions were tried",)
    asked = by_signature(plan)
    assert max(q.rows[0].new for q in asked["prefill"]) == 256
    whole = make_plan(manifest(config=large, max_positions=2048), max_length=2048)
    assert whole.length(0) == 2048 and not whole.notes


def test_the_largest_model_is_tried_with_every_signature_past_the_first_size():
    huge = {"num_hidden_layers": 96, "num_attention_heads": 96, "hidden_size": 12288}
    names = [*ALL, "generate_32"]
    made_of = manifest(
        config=huge,
        max_positions=2048,
        signatures=names,
        generate=[4, 32],
        compiler="xla",
    )
    asked = by_signature(make_plan(made_of))
    assert set(asked) == set(names)
    for name in ("decode", "generate_4", "generate_32"):
        assert {0, 128, 129} <= {q.rows[0].past for q in asked[name]}


def test_sequences_that_another_begins_with_are_read_with_it():
    long, other = np.arange(9, dtype=np.int32), np.arange(3, dtype=np.int32) + 1
    packed = PackedSequences.of([long[:4], other, long, long[:4], other[:1]])
    assert len(packed.tokens) == 12
    for sequence in (long, long[:4], other, other[:1]):
        at = packed.find(sequence)
        np.testing.assert_array_equal(packed.tokens[at], sequence)
        np.testing.assert_array_equal(packed.positions[at], np.arange(len(sequence)))
    whole = np.zeros((12, 12), bool)
    for at in (packed.find(long), packed.find(other)):
        size = at.stop - at.start
        whole[at, at] = np.tri(size, dtype=bool)
    pieces = [packed.mask(slice(begin, begin + 5)) for begin in (0, 5, 10)]
    for begin, piece in zip((0, 5, 10), pieces, strict=True):
        expected = whole[begin : begin + 5, : begin + 5]
        np.testing.assert_array_equal(piece, expected)


def test_only_common_signatures_are_compared():
    other = manifest(signatures=["prefill", "score"], max_positions=64)
    plan = make_plan(manifest(), other)
    assert {q.signature for q in plan.cases} == {"prefill", "score"}
    assert all(r.past + r.new <= 64 for q in plan.cases for r in q.rows)


def test_fit():
    assert fit(5, []) == 5
    assert fit(5, [4, 8, 16]) == 8
    assert fit(17, [4, 8, 16]) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_unpack(dtype):
    layout = CacheLayout(2, 3, 8, dtype)
    random = np.random.default_rng(0)
    numbers = random.normal(size=(5, 2, 2, 3, 8)).astype(np.float32)
    if dtype == "float32":
        packed = expected = numbers
    elif dtype == "bfloat16":
        rounded = numbers.astype(ml_dtypes.bfloat16)
        packed, expected = rounded.view(np.float32), rounded.astype(np.float32)
    else:
        scale = np.abs(numbers).max(-1, keepdims=True) / 127
        integers = np.rint(numbers / scale).astype(np.int8)
        packed = np.concatenate([integers.view(np.float32), scale], -1)
        expected = integers * scale
    assert packed.shape[1:] == layout.row_shape
    np.testing.assert_allclose(unpack(packed, layout), expected, rtol=1e-6)


CASE = TestCase("prefill", (Row(0, 0, 2),), 2)
PLAN = Plan((CASE,), 100, (), ())


def errors_of(got: dict, expected: dict, allowed: float = 0.1):
    return {o.output: o for o in measure(PLAN, [[got]], [[expected]], allowed)}


def test_errors_are_shares_of_the_numbers():
    expected = np.array([3.0, -3.0, 3.0, -3.0])
    got = np.array([3.3, -3.0, 3.0, -3.0])
    actual = errors_of({"logits": got}, {"logits": expected})["logits"]
    assert actual.max_error == pytest.approx(0.1)
    assert actual.mean_error == pytest.approx(0.025)
    assert actual.agreement == 1.0
    assert not actual.ok  # the mean
    assert errors_of({"logits": expected}, {"logits": expected})["logits"].ok
    broken = errors_of({"logits": expected * np.nan}, {"logits": expected})["logits"]
    assert broken.max_error == float("inf") and not broken.ok
    shorter = errors_of({"new_cache": expected}, {"new_cache": expected[:2]})[
        "new_cache"
    ]
    assert not shorter.ok


def test_a_generation_is_judged_by_what_it_left_out():
    tokens, logits = np.array([1, 0]), np.array([[0.0, 2.0], [1.0, 1.5]])
    expected = {"regret": np.array([0.0, 0.5]), "logits": logits}
    actual = errors_of({"tokens": tokens}, expected)["tokens"]
    assert actual.agreement == 0.5
    assert actual.max_error == pytest.approx(0.5 / np.sqrt(np.mean(logits**2)))


def test_two_generations_are_compared_as_far_as_they_agree():
    mine = {
        "tokens": np.array([5, 6, 7]),
        "logprobs": np.array([-1.0, -1.0, -9.0]),
        "new_cache": np.arange(4.0)[:, None],  # two tokens fed, two of those made
    }
    theirs = {
        "tokens": np.array([5, 6, 8]),
        "logprobs": np.array([-1.0, -1.0, -2.0]),
        "new_cache": np.arange(4.0)[:, None],
    }
    actual = errors_of(mine, theirs)
    assert actual["tokens"].agreement == pytest.approx(2 / 3)
    assert actual["tokens"].ok  # shown, not judged
    assert actual["logprobs"].max_error == 0
    assert actual["new_cache"].max_error == 0


def test_tolerances_add_up_and_rounding_leaves_less():
    plain, int8 = manifest(), manifest(weights_dtype="int8")
    assert tolerance(plain) < tolerance(manifest(cache_dtype="bfloat16"))
    assert tolerance(int8) > tolerance(int8, source="int8") > tolerance(plain)


def test_the_usual_batch_is_of_few_rows():
    """Few enough for products that read the weights as they are."""
    for case in make_plan(manifest(max_positions=2048)).cases:
        if len(case.rows) > 1:
            assert len(case.rows) * case.size < 16
            if case.size > 1:
                assert len({row.new for row in case.rows}) == len(case.rows)


def test_a_generation_goes_on_to_its_end_from_one_token_and_in_a_batch():
    def limits(tokens_per_call: int, *rows: Row) -> list[int]:
        case = TestCase(f"generate_{tokens_per_call}", rows, size=7, slots=128)
        return greedy_limits(case).tolist()

    assert limits(32, Row(0, 0, 1)) == [32]
    assert limits(32, Row(0, 0, 1), Row(1, 5, 4), Row(2, 2, 1)) == [32, 16, 8]
    assert limits(32, Row(0, 0, 7)) == [4]
    assert limits(2, Row(0, 128, 1)) == [2]
    assert limits(1, *[Row(0, 0, 1)] * 3) == [1, 1, 1]


def test_signatures_take_turns():
    asked = make_plan(manifest()).cases
    order = interleaved(asked)
    assert len(order) == len(asked) and set(order) == set(asked)
    assert len({q.signature for q in order[: len(ALL)]}) == len(ALL)
    for name, cases in by_signature(make_plan(manifest())).items():
        assert [q for q in order if q.signature == name] == cases
