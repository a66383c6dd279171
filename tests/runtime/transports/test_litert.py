"""The LiteRT transport: its cache, its refusals, and the client on top of it."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from optserve.runtime import Client, Sampling
from optserve.runtime.codec import RowBlocks
from optserve.runtime.errors import (
    Cancelled,
    IncompatibleModel,
    InvalidRequest,
    OptserveError,
    PromptTooLong,
    VersionGone,
)
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.litert import LiteRTTransport

from tests.export import exports
from tests.runtime.small_tokenizer import SMALL_TOKENIZER

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
_FOLDER = tempfile.TemporaryDirectory(prefix="optserve-tests-")


@functools.cache
def exported(case: str = "pre_ln", framework: str = "tf") -> Path:
    from optserve.export.options import ExportOptions
    from optserve.export.pipeline import export_checkpoint

    source = Path(_FOLDER.name) / f"checkpoint-{case}"
    if not source.exists():
        shutil.copytree(GOLDEN / case, source)
        (source / "tokenizer.json").write_text(SMALL_TOKENIZER)
    out = Path(_FOLDER.name) / f"{case}-{framework}"
    sizes = {"prompt_buckets": [4, 16], "cache_size": 40}
    options = ExportOptions(target="tflite", framework=framework, **sizes)
    return export_checkpoint(source, out, options, verify=False).path


def greedy_case(case: str):
    expected = np.load(GOLDEN / case / "expected.npz")
    masked = zip(expected["ids_left"], expected["left_mask"], strict=True)
    return [[int(i) for i in ids[mask > 0]] for ids, mask in masked], expected["greedy"]


@pytest.mark.parametrize(
    ("case", "framework"), [("pre_ln", "tf"), ("post_ln_proj", "jax")]
)
def test_greedy_tokens_are_the_references(case, framework):
    prompts, expected = greedy_case(case)
    with Client(exported(case, framework)) as client:
        generations = client.generate(prompts, max_new_tokens=expected.shape[1])
    for generation, tokens in zip(generations, expected, strict=True):
        assert generation.tokens == [int(i) for i in tokens[: len(generation.tokens)]]
        assert generation.finish_reason == "stop" or len(generation.tokens) == 24


def test_same_tokens_as_the_savedmodel():
    prompts, _ = greedy_case("pre_ln")
    options = {"max_new_tokens": 20, "stop_token_ids": []}
    with Client(exported()) as file, Client(exports.exported("pre_ln")) as savedmodel:
        for sampling in (Sampling(temperature=0), Sampling(temperature=1, seed=3)):
            options["sampling"] = sampling
            actual, expected = (
                [g.tokens for g in client.generate(prompts, **options)]
                for client in (file, savedmodel)
            )
            assert actual == expected


def test_text_streams_and_samples_share_a_prompt():
    with Client(exported() / "model.tflite") as client:
        sampling = Sampling(temperature=1.2, seed=5)
        (whole,) = client.generate("Hello", max_new_tokens=12, sampling=sampling)
        chunks = client.stream("Hello", max_new_tokens=12, sampling=sampling)
        assert "".join(chunk.text for chunk in chunks) == whole.text
        generations = client.generate(
            "Hello", max_new_tokens=6, samples=3, sampling=sampling
        )
        assert len({tuple(other.tokens) for other in generations[0].alternatives}) == 2


def ints(*values):
    return np.array(values, np.int32)


def decode(transport, tokens, rows=None):
    """Feed tokens after the rows ``[n, L, 2, H, D]``, given in pieces."""
    inputs = {"input_ids": ints(*tokens)[None], "input_length": ints(len(tokens))}
    name = "prefill"
    if rows is not None:
        name = "decode"
        blocks = RowBlocks((tuple(rows),), 40)
        inputs |= {"cache": blocks, "cache_length": ints(sum(map(len, rows)))}
    outputs = transport.call(Call(name, inputs)).outputs
    return outputs["logits"][0], outputs["new_cache"][0, : len(tokens)]


class Writes:
    """Counts the rows that a transport copies into the model's tensors."""

    def __init__(self, transport, monkeypatch):
        self.rows = 0
        write = transport._model._write

        def counted(slot, rows):
            self.rows += len(rows)
            write(slot, rows)

        monkeypatch.setattr(transport._model, "_write", counted)

    def taken(self):
        rows, self.rows = self.rows, 0
        return rows


def test_only_new_rows_are_copied(monkeypatch):
    transport = LiteRTTransport(exported(), threads=1)
    writes = Writes(transport, monkeypatch)
    buffer = np.zeros((40, 3, 2, 4, 8), np.float32)
    _, new_rows = decode(transport, range(10, 20))
    buffer[:10] = new_rows
    assert writes.taken() == 0
    for length in range(10, 20):
        logits, new_rows = decode(transport, [30 + length], [buffer[:length]])
        buffer[length] = new_rows[0]
        assert writes.taken() == (10 if length == 10 else 1)
    fresh, _ = decode(LiteRTTransport(exported(), threads=1), [49], [buffer[:19]])
    np.testing.assert_array_equal(logits, fresh)


def test_other_rows_are_never_taken_for_the_held_ones():
    transport = LiteRTTransport(exported(), threads=1)
    random = np.random.default_rng(0)
    buffers = random.standard_normal((2, 20, 3, 2, 4, 8), np.float32)
    shared = random.standard_normal((6, 3, 2, 4, 8), np.float32)
    steps = [
        [buffers[0][:9]],
        [buffers[0][:12]],
        [buffers[1][:12]],  # another sequence
        [buffers[0][:5]],  # back, and cut
        [shared, buffers[0][:5]],  # a shared beginning
        [shared, buffers[0][:6]],
        [shared[:3], buffers[0][:6]],
        [shared, buffers[1][:6]],
        [buffers[0][2:9]],  # the same memory from another row on
    ]
    for pieces in steps:
        logits, _ = decode(transport, [7], pieces)
        rows = np.concatenate(pieces).copy()
        inputs = {
            "input_ids": ints(7)[None],
            "input_length": ints(1),
            "cache": rows[None],
            "cache_length": ints(len(rows)),
        }
        plain = LiteRTTransport(exported(), threads=1).call(Call("decode", inputs))
        np.testing.assert_array_equal(logits, plain.outputs["logits"][0])


def test_a_buffer_cut_and_grown_again_is_copied_again():
    transport = LiteRTTransport(exported(), threads=1)
    buffer = np.random.default_rng(1).standard_normal((20, 3, 2, 4, 8), np.float32)
    decode(transport, [7], [buffer[:12]])
    decode(transport, [7], [buffer[:8]])
    buffer[8:12] += 1
    logits, _ = decode(transport, [7], [buffer[:12]])
    fresh = LiteRTTransport(exported(), threads=1)
    np.testing.assert_array_equal(logits, decode(fresh, [7], [buffer[:12]])[0])


def test_a_short_prompt_goes_token_by_token():
    transport = LiteRTTransport(exported(), threads=1)
    _, rows = decode(transport, [5])
    again, more = decode(transport, [6], [rows])
    inputs = {"input_ids": ints(5, 6)[None], "input_length": ints(2)}
    both = transport._model._feed_one_by_one(ints(5, 6), 0)
    np.testing.assert_allclose(both["logits"][0], again, atol=1e-5)
    np.testing.assert_allclose(both["new_cache"][0], [rows[0], more[0]], atol=1e-5)
    padded = transport.call(Call("prefill", inputs)).outputs
    np.testing.assert_allclose(padded["logits"][0], again, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"cache_length": ints(41)}, PromptTooLong, "40 slots, got 41"),
        ({"input_length": ints(17)}, InvalidRequest, "1 to 4, got 17"),
        ({"cache_length": ints(39)}, PromptTooLong, "41 in all"),
        ({"cache_length": ints(-1)}, InvalidRequest, "got -1"),
        ({"cache_length": ints(9)}, InvalidRequest, "has 8 rows"),
        ({"input_ids": ints(1, 2, 3, 128)[None]}, InvalidRequest, "got 1 to 128"),
        ({"input_ids": np.ones((2, 4), np.int32)}, InvalidRequest, "one row at a time"),
        (
            {"cache": np.zeros((1, 8, 9, 2, 4, 8), "f4")},
            InvalidRequest,
            "another model",
        ),
    ],
)
def test_wrong_inputs_are_said_in_one_sentence(change, error, said):
    transport = LiteRTTransport(exported(), threads=1)
    inputs = {
        "input_ids": ints(1, 2, 3, 4)[None],
        "input_length": ints(4),
        "cache": np.zeros((1, 8, 3, 2, 4, 8), np.float32),
        "cache_length": ints(8),
    }
    with pytest.raises(error, match=said) as caught:
        transport.call(Call("decode", inputs | change))
    assert "\n" not in str(caught.value)


def test_a_prompt_over_the_limit_is_refused_before_it_runs():
    with Client(exported()) as client:
        with pytest.raises(PromptTooLong, match="41 positions"):
            client.generate([[5] * 40], max_new_tokens=10)
        with pytest.raises(OptserveError, match="score"):
            client.score([[5, 6]])


def test_every_truncation_is_found(tmp_path):
    whole = (exported() / "model.tflite").read_bytes()
    cut = tmp_path / "model.tflite"
    for size in (0, 3, 70, 5000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(
            IncompatibleModel, match=r"incomplete|not a TFLite"
        ) as caught:
            LiteRTTransport(cut)
        assert "\n" not in str(caught.value)


def test_other_models_and_missing_files_are_refused(tmp_path):
    import tensorflow as tf

    function = tf.function(
        lambda x: x * 2.0, input_signature=[tf.TensorSpec([1], tf.float32)]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    (tmp_path / "other.tflite").write_bytes(converter.convert())
    with pytest.raises(IncompatibleModel, match="holds no manifest"):
        LiteRTTransport(tmp_path / "other.tflite")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=r"holds no \.tflite files"):
        LiteRTTransport(tmp_path / "empty")


def test_versions_signatures_and_closing():
    transport = LiteRTTransport(exported(), threads=1)
    row = {"row": ints(0)}
    assert transport.call(Call("describe", row)).outputs["manifest"] != b""
    with pytest.raises(VersionGone, match="version 9 is not loaded"):
        transport.call(Call("describe", row, version=9))
    with pytest.raises(IncompatibleModel, match="embed"):
        transport.call(Call("embed", row))
    transport.close()
    with pytest.raises(Cancelled):
        transport.call(Call("describe", row))


def test_the_command_runs_without_tensorflow_or_grpc_calls():
    script = (
        "import sys; from optserve.runtime.cli import main; "
        "code = main(sys.argv[1:]); "
        "loaded = {'tensorflow', 'jax'} & set(sys.modules); "
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    model = str(exported() / "model.tflite")
    command = ["generate", "--model", model, "Hello", "--max-new-tokens", "5"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Client(exported()) as client:
        (generation,) = client.generate("Hello", max_new_tokens=5)
    assert generation.text in done.stdout


def test_the_minimal_example_writes_the_same_text():
    example = Path(__file__).parents[3] / "export" / "examples" / "litert_minimal.py"
    prompt = "Hello, how are you"  # more than one piece of the largest bucket
    done = subprocess.run(
        [sys.executable, str(example), str(exported()), prompt, "12"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with Client(exported()) as client:
        (generation,) = client.generate(prompt, max_new_tokens=12)
    assert done.stdout.rstrip("\n") == (prompt + generation.text).rstrip("\n")
    assert len(example.read_text().splitlines()) < 60
