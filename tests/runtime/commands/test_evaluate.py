"""Perplexity by windows equals the sum over single predictions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from optserve.models.generation.sampling import log_softmax
from optserve.runtime.cli import main
from optserve.runtime.commands.evaluate import windows

from tests.runtime.numpy_model import GOLDEN, NumpyOPT, NumpyTransport
from tests.runtime.numpy_server import serving
from tests.runtime.small_tokenizer import SMALL_TOKENIZER, small_tokenizer

TEXT = "the quick brown fox (not a lazy one) jumps over 12 dogs; and 7 cats. " * 3


@pytest.fixture(scope="module")
def target():
    with serving(NumpyTransport(tokenizer=SMALL_TOKENIZER)) as target:
        yield target


@pytest.mark.parametrize("stride", [20, 5])
def test_each_token_is_predicted_from_its_window(target, tmp_path, capsys, stride):
    file = tmp_path / "text"
    file.write_text(TEXT)
    arguments = ["--window", "21", "--stride", str(stride), "--json"]
    command = ["evaluate", "--target", target, "--text", str(file), *arguments]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out)
    ids = small_tokenizer().encode(TEXT).ids
    assert figures["tokens"] == len(ids) - 1
    model, total = NumpyOPT(GOLDEN / "pre_ln"), 0.0
    heads = model.config["num_attention_heads"]
    size = model.config["hidden_size"] // heads
    empty = np.zeros((0, model.config["num_hidden_layers"], 2, heads, size), np.float32)
    for i in range(1, len(ids)):
        begin = 0 if i < 21 else stride * (1 + (i - 21) // stride)
        logits = model.logits(model.hidden(np.array(ids[begin:i]), empty)[0])[-1]
        total += float(log_softmax(logits[None])[0, ids[i]])
    assert figures["loss"] == pytest.approx(-total / (len(ids) - 1), abs=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]), rel=1e-9)
    per_byte = figures["loss"] * figures["tokens"] / math.log(2) / len(TEXT.encode())
    assert figures["bits_per_byte"] == pytest.approx(per_byte, rel=1e-9)


def test_bits_per_byte_are_of_what_was_scored(target, tmp_path, capsys):
    file = tmp_path / "text"
    file.write_text("a b " * 40)
    command = ["evaluate", "--target", target, "--text", str(file), "--json"]
    assert main([*command, "--limit", "11"]) == 0
    figures = json.loads(capsys.readouterr().out)
    scored = small_tokenizer().decode(small_tokenizer().encode("a b " * 40).ids[1:11])
    nats = figures["loss"] * 10
    per_byte = nats / math.log(2) / len(scored.encode())
    assert figures["bits_per_byte"] == pytest.approx(per_byte, rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 7, 50])
@pytest.mark.parametrize("count", [2, 3, 7, 20, 50])
def test_windows_count_each_token_once(count, size):
    for stride in range(1, size):
        counted = []
        for begin, end, first in windows(count, size, stride):
            assert begin < first < end <= count and end - begin <= size
            counted += range(first, end)
        assert counted == list(range(1, count))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "holds no text"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")],
)
def test_a_file_that_holds_no_text(target, tmp_path, capsys, content, words):
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    assert main(["evaluate", "--target", target, "--text", str(file)]) == 1
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1


def test_a_folder_may_be_named_alone(capsys):
    for words in (["nowhere"], ["--model", "nowhere"]):
        assert main(["evaluate", *words, "--text", __file__]) == 1
        assert "no such file or folder: nowhere" in capsys.readouterr().err
    both = ["evaluate", "nowhere", "--model", "there", "--text", __file__]
    assert main(both) == 2
    assert "not allowed with" in capsys.readouterr().err
