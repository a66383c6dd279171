"""Bringing a version up: check its files, load it, warm it up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from ..codec.predict import decode_predict_request
from ..errors import MalformedMessage
from ..memory import on_huge_pages
from ..model_dir import (
    MANIFEST_PATH,
    WARMUP_PATH,
    WARMUP_RECORDS_LIMIT,
    ModelDirError,
    changed_files,
    read_manifest,
)
from .predict import Runner, predict
from .servable import Servable
from .serving_error import ServingError, failed_precondition, invalid_argument
from .settings import SessionOptions

log = logging.getLogger("optserve.server")


def load(folder: Path, options: SessionOptions, run: Runner) -> Servable:
    """The version in ``folder``, checked and warm.

    Raises:
        ServingError: tampered files, no SavedModel, or a warm-up request that fails.
    """
    verify_files(folder)
    exported = (folder / MANIFEST_PATH).is_file()
    with on_huge_pages():  # weights, and what the first calls pack of them
        servable = Servable(str(folder), options, exported=exported)
        try:
            count = warm_up(servable, folder / WARMUP_PATH, run)
        except ServingError:
            servable.close()
            raise
    if count:
        log.info("%s: %d warm-up requests replayed", folder, count)
    return servable


def verify_files(folder: Path) -> None:
    """Compare the files with the digests in the manifest, if there is one.

    Raises:
        ServingError: FAILED_PRECONDITION names the file that is missing or changed.
    """
    if not (folder / MANIFEST_PATH).is_file():
        return
    try:
        problems = changed_files(folder, read_manifest(folder), exact=False)
    except (ModelDirError, OSError) as error:
        raise failed_precondition(str(error)) from None
    if problems:
        raise failed_precondition(
            f"{folder}: {problems[0]}; copy or export the model again"
        )


def warm_up(servable: Servable, path: Path, run: Runner) -> int:
    """Replay the Predict records of a warm-up file; returns how many there were.

    Raises:
        ServingError: not a TFRecord file of PredictionLog, over 1000 records, or a
            request that the model refuses.
    """
    count = 0
    for record in _records(path):
        count += 1
        if count > WARMUP_RECORDS_LIMIT:
            raise invalid_argument(
                "Number of warmup records exceeds the maximum "
                f"({WARMUP_RECORDS_LIMIT}) at {path}"
            )
        try:
            entry = prediction_log_pb2.PredictionLog.FromString(record)
            if entry.WhichOneof("log_type") != "predict_log":
                continue
            request = decode_predict_request(
                entry.predict_log.request.SerializeToString()
            )
        except (DecodeError, MalformedMessage) as error:
            raise invalid_argument(
                f"Failed to parse warmup record {count} of {path}: {error}"
            ) from None
        try:
            predict(servable, request, run)
        except ServingError as error:
            raise ServingError(
                error.code, f"warm-up record {count} of {path}: {error.details}"
            ) from None
    return count


def _records(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield bytes(record)
    except tf.errors.DataLossError as error:
        raise invalid_argument(
            f"{path} is not in TFRecord format: {error.message}"
        ) from None
