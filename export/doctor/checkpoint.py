"""Whether a checkpoint can be exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...models.checkpoints import CheckpointError, open_weights
from ...models.config import OPTConfig
from ...models.weights import weight_shapes
from ..footprint import GIB, parameter_count
from .check import Check


def check_checkpoint(path: str | Path) -> Iterator[Check]:
    """Whether a local checkpoint can be read: configuration, weights, tokenizer.

    Only headers of the weight files are read.
    """
    try:
        config = OPTConfig.from_pretrained(path)
    except (ValueError, OSError, CheckpointError) as error:
        yield Check("config.json", "failed", str(error))
        return
    layers, hidden = config.num_hidden_layers, config.hidden_size
    count = parameter_count(config.to_dict()).total
    detail = f"{layers} layers of {hidden}, {count / 1e6:,.1f} M parameters"
    yield Check("config.json", "ok", detail)
    try:
        weights = open_weights(path)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        yield Check("weights", "failed", str(error))
        return
    wrong = [
        f"{name} is {'missing' if name not in weights else weights.shape(name)}, "
        f"expected {shape}"
        for name, shape in weight_shapes(config).items()
        # A tied head is the token table under another name, and may be left out.
        if not (name == "lm_head.weight" and config.tie_word_embeddings)
        and (name not in weights or tuple(weights.shape(name)) != tuple(shape))
    ]
    dtypes = sorted({str(weights.dtype(name)) for name in weights})
    detail = f"{weights.format}, {', '.join(dtypes)}, {weights.nbytes / GIB:.2f} GiB"
    if wrong:
        detail += f"; {len(wrong)} do not fit the configuration, first: {wrong[0]}"
        yield Check("weights", "failed", detail, "is config.json of another model?")
    else:
        yield Check("weights", "ok", detail)
    folder = Path(path)
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        yield Check("tokenizer", "ok", "there")
    else:
        advice = "clients can then send token ids only: add tokenizer.json"
        yield Check("tokenizer", "note", "none in the checkpoint", advice)
