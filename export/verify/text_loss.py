"""What an export loses on a text of one's own: its loss beside another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...models.regular_files import read_regular_file
from ...runtime.client import Client
from ...runtime.model_dir import read_manifest, version_folder
from ..checkpoint import Checkpoint
from ..errors import ExportError

MOST_RAISED = 1e-3
"""By what share int8 activations may raise a loss: what the exporter keeps, too."""

_TEXT_LIMIT = 64 << 20  # bytes
_MOST_TOKENS = 1 << 16
_WINDOW = 128  # tokens


def text_losses(
    text: Path, export: Path, *, other: Path | None, checkpoint: Path | None
) -> tuple[dict[str, float], list[str]]:
    """The losses on a text, in nats per token by whose they are, and what is wrong.

    Beside the export's stands the other one's, or that of the checkpoint with its
    weights in int8 and 16-bit activations, if the export has int8 ones.

    Raises:
        ExportError: no text, or an export without a tokenizer.
    """
    words = _read(text)
    with Client(str(export)) as client:
        ids = _windows(words, client, text=text, export=export)
        loss = _loss(client, ids)
    losses, problems = {"export": loss}, []
    if other is not None:
        losses["other"] = export_loss(other, ids)
    elif checkpoint is not None and _has_int8_activations(export):
        from ..savedmodel.calibration import mean_loss

        source = Checkpoint.open(checkpoint)
        exact = mean_loss(source.config, source.weights, ids, "int16")
        losses["checkpoint, int16 activations"] = exact
        if not loss <= exact * (1 + MOST_RAISED):
            problems.append(
                f"int8 activations raise the loss on {text} from {exact:.4f} to "
                f"{loss:.4f}: export with --activations int16, or with --calibrate "
                "and a text like this"
            )
    return losses, problems


def export_loss(export: Path, ids: np.ndarray) -> float:
    """Nats per token of the rows ``ids`` [n,S], through the export's ``score``."""
    with Client(str(export)) as client:
        return _loss(client, ids)


def _loss(client: Client, ids: np.ndarray) -> float:
    scores = client.score(ids.tolist())
    return -float(np.mean([score.logprobs[1:] for score in scores]))


def _has_int8_activations(export: Path) -> bool:
    return read_manifest(version_folder(export)).activations.get("dtype") == "int8"


def _read(text: Path) -> str:
    try:
        return read_regular_file(text, limit=_TEXT_LIMIT).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExportError(f"cannot read the text {text}: {reason}") from None


def _windows(words: str, client: Client, *, text: Path, export: Path) -> np.ndarray:
    manifest = client.describe()
    if not manifest.tokenizer:
        raise ExportError(f"{export} has no tokenizer to read {text} with")
    ids = client.encode(words)[:_MOST_TOKENS]
    size = min(_WINDOW, manifest.max_positions, len(ids))
    if size < 2:
        raise ExportError(f"{text} holds no text to predict")
    rows = len(ids) // size
    return np.array(ids[: rows * size], np.int32).reshape(rows, size)
