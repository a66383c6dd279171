"""Replaying a version's warm-up requests, so that no caller waits for a compiler.

The file is TensorFlow Serving's: a TFRecord of ``PredictionLog`` messages
(tensorflow_serving/apis/prediction_log.proto), replayed in its own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from ..codec.predict import PredictRequest, decode_predict_request
from ..errors import MalformedMessage
from ..model_dir import WARMUP_RECORDS_LIMIT
from .predict import Runner, predict
from .progress import Progress
from .servable import Servable
from .serving_error import ServingError, invalid_argument


def warm_up(servable: Servable, path: Path, run: Runner, progress: Progress) -> None:
    """Replay the file's records.

    Raises:
        ServingError: not a TFRecord file of PredictionLog, over 1000 records, or a
            request that the model refuses.
    """
    records = list(_records(path))
    for number, record in enumerate(records, 1):
        request = _request(record, f"warmup record {number} of {path}")
        if request is not None:
            with progress.step(f"warm-up {number}/{len(records)}: {_named(request)}"):
                try:
                    predict(servable, request, run)
                except ServingError as error:
                    raise ServingError(
                        error.code, f"warm-up record {number} of {path}: {error}"
                    ) from None


def _records(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    try:
        for number, record in enumerate(records, 1):
            if number > WARMUP_RECORDS_LIMIT:
                raise invalid_argument(
                    "Number of warmup records exceeds the maximum "
                    f"({WARMUP_RECORDS_LIMIT}) at {path}"
                )
            yield bytes(record)
    except tf.errors.DataLossError as error:
        raise invalid_argument(
            f"{path} is not in TFRecord format: {error.message}"
        ) from None


def _request(record: bytes, what: str) -> PredictRequest | None:
    """The record's Predict request; None for a record of another method."""
    try:
        entry = prediction_log_pb2.PredictionLog.FromString(record)
        if entry.WhichOneof("log_type") != "predict_log":
            return None
        return decode_predict_request(entry.predict_log.request.SerializeToString())
    except (DecodeError, MalformedMessage) as error:
        raise invalid_argument(f"Failed to parse {what}: {error}") from None


def _named(request: PredictRequest) -> str:
    """Signature, rows, and new tokens and cache slots of each, or the shapes."""
    name = request.model.signature or "serving_default"
    shapes = {alias: array.shape for alias, array in request.inputs.items()}
    ids, cache = shapes.get("input_ids", ()), shapes.get("cache", ())
    if len(ids) != 2:
        return f"{name} {shapes}"
    slots = f", {cache[1]} cached" if len(cache) > 1 else ""
    return f"{name} of {ids[0]} × {ids[1]} tokens{slots}"
