"""Reading TensorFlow Serving's configuration files, in protobuf text format.

The models' file uses the official message classes. Batching parameters and TLS options
have none in the ``tensorflow-serving-api`` package, so their messages are declared here
after ``session_bundle_config.proto`` and ``ssl_config.proto``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from .serving_error import invalid_argument
from .settings import BatchingParameters, ModelOptions, TlsOptions, VersionPolicy

_PACKAGE = "optserve.config"
_WRAPPED = (
    "max_batch_size",
    "batch_timeout_micros",
    "max_enqueued_batches",
    "num_batch_threads",
)


def read_models_file(path: str) -> dict[str, ModelOptions]:
    """Models of a ``models.config`` file (``--model_config_file``).

    Raises:
        ValueError: unreadable, not the text format, or a model without name or path.
    """
    config = model_server_config_pb2.ModelServerConfig()
    _parse_file(path, config)
    return models_from_config(config)


def models_from_config(config: Any) -> dict[str, ModelOptions]:
    """Models of a ModelServerConfig message.

    Raises:
        ServingError: INVALID_ARGUMENT for a model without name or path, or twice.
    """
    models: dict[str, ModelOptions] = {}
    for model in config.model_config_list.config:
        if not model.name or not model.base_path:
            raise invalid_argument(
                "Every model needs a name and a base_path, got "
                f"name {model.name!r}, base_path {model.base_path!r}"
            )
        if model.name in models:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        if model.model_platform not in ("", "tensorflow"):
            raise invalid_argument(
                f"PlatformConfigMap has no entry for platform {model.model_platform}"
            )
        models[model.name] = ModelOptions(
            model.base_path,
            _policy(model.model_version_policy),
            dict(model.version_labels),
        )
    return models


def read_batching_file(path: str) -> BatchingParameters:
    """Parameters of a ``--batching_parameters_file``.

    Raises:
        ValueError: unreadable, not the text format, or values that can't be.
    """
    message = _message_class("BatchingParameters")()
    _parse_file(path, message)
    given: dict[str, Any] = {
        name: getattr(message, name).value
        for name in _WRAPPED
        if message.HasField(name)
    }
    try:
        return BatchingParameters(
            allowed_batch_sizes=tuple(message.allowed_batch_sizes),
            pad_variable_length_inputs=message.pad_variable_length_inputs,
            **given,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_tls_file(path: str) -> TlsOptions:
    """PEM texts of an ``--ssl_config_file``.

    Raises:
        ValueError: unreadable, not the text format, or key or certificate missing.
    """
    message = _message_class("SSLConfig")()
    _parse_file(path, message)
    if not message.server_key or not message.server_cert:
        raise ValueError(f"{path}: server_key and server_cert must both be given")
    return TlsOptions(
        message.server_key.encode(),
        message.server_cert.encode(),
        message.custom_ca.encode(),
        message.client_verify,
    )


def _policy(proto: Any) -> VersionPolicy:
    choice = proto.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        return VersionPolicy(versions=tuple(proto.specific.versions))
    return VersionPolicy(latest=proto.latest.num_versions or 1)


def _parse_file(path: str, message: Any) -> None:
    try:
        text_format.Parse(_text_of(path), message)
    except text_format.ParseError as error:
        # the parser quotes the text it stopped at, which may be a private key
        place = str(error).split(":")[:2]
        where = " line " + place[0] if place[0].isdigit() else ""
        raise ValueError(
            f"{path}: not a {message.DESCRIPTOR.name} in protobuf text format{where}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}") from None


def _text_of(path: str) -> str:
    """A pipe would be waited for, maybe for ever; one of the shell's own has a writer.

    That is what ``<(command)`` hands over, as ``/dev/fd/N``.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or path.startswith("/dev/fd/")):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return Path(path).read_text("utf-8")


def _message_class(name: str) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="optserve_config.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    int64, string = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"
    declared: Mapping[str, list[tuple[str, int, Any]]] = {
        "BatchingParameters": [
            ("max_batch_size", 1, int64),
            ("batch_timeout_micros", 2, int64),
            ("max_enqueued_batches", 3, int64),
            ("num_batch_threads", 4, int64),
            ("thread_pool_name", 5, string),
            ("allowed_batch_sizes", 6, kinds.TYPE_INT64),
            ("pad_variable_length_inputs", 7, kinds.TYPE_BOOL),
        ],
        "SSLConfig": [
            ("server_key", 1, kinds.TYPE_STRING),
            ("server_cert", 2, kinds.TYPE_STRING),
            ("custom_ca", 3, kinds.TYPE_STRING),
            ("client_verify", 4, kinds.TYPE_BOOL),
        ],
    }
    for message_name, fields in declared.items():
        message = file.message_type.add(name=message_name)
        for field_name, number, kind in fields:
            field = message.field.add(name=field_name, number=number)
            repeated = field_name == "allowed_batch_sizes"
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = kinds.TYPE_MESSAGE, kind
            else:
                field.type = kind
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    )
