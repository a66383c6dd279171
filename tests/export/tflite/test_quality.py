"""What smaller weights cost: held-out loss of the shipped checkpoint on LiteRT."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from optserve.export.options import ExportOptions
from optserve.models.generation.sampling import log_softmax
from optserve.models.tokenizer import Tokenizer
from optserve.runtime.codec import RowBlocks
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.litert import LiteRTTransport

from tests.export.exports import export_to

TINY = Path(__file__).parents[3] / "models" / "tiny_shakespeare"
WINDOW = 192  # tokens, `</s>` included
WINDOWS = 8


def held_out(data_dir: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """Windows spread over the last tenth of the corpus."""
    text = (data_dir / "tinyshakespeare.txt").read_text(encoding="utf-8")
    text = text[int(0.9 * len(text)) :]
    starts = np.linspace(0, len(text) - 4 * WINDOW, WINDOWS).astype(int)
    return [tokenizer.encode(text[s : s + 4 * WINDOW])[:WINDOW] for s in starts]


def loss(folder: Path, windows: list[list[int]]) -> float:
    """Nats for a token, each given those before it in its window."""
    transport = LiteRTTransport(folder, threads=2)
    config = transport.call(Call("describe", {})).outputs["manifest"]
    assert config.shape == (1,)
    losses = []
    for ids in windows:
        cache = None
        for slot, (token, following) in enumerate(pairwise(ids)):
            inputs = {
                "input_ids": np.array([[token]], np.int32),
                "input_length": np.ones(1, np.int32),
            }
            if cache is not None:
                inputs["cache"] = RowBlocks(((cache[:slot],),), len(cache))
                inputs["cache_length"] = np.array([slot], np.int32)
            outputs = transport.call(Call("decode", inputs)).outputs
            if cache is None:
                row = outputs["new_cache"].shape[2:]
                cache = np.zeros((WINDOW, *row), np.float32)
            cache[slot] = outputs["new_cache"][0, 0]
            losses.append(-log_softmax(outputs["logits"][0])[following])
    return float(np.mean(losses))


@pytest.mark.slow
def test_held_out_loss_of_every_weight_type(data_dir, tmp_path, capsys):
    windows = held_out(data_dir, Tokenizer.from_directory(TINY))
    losses = {}
    for weights in ("float32", "float16", "int8", "int4"):
        folder = export_to(
            tmp_path / weights, TINY, ExportOptions(target="tflite", weights=weights)
        )
        losses[weights] = loss(folder, windows)
    with capsys.disabled():
        print({name: round(value, 4) for name, value in losses.items()})
    assert losses["float32"] < 4.5  # it has learned: a uniform guess costs 6.9
    assert abs(losses["float16"] - losses["float32"]) < 0.002
    assert abs(losses["int8"] - losses["float32"]) < 0.01
    assert abs(losses["int4"] - losses["float32"]) < 0.05
