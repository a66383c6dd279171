"""Messages of TensorFlow Serving that its Python package leaves out."""

from __future__ import annotations

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)


def proto(name: str):
    """A message class, by its name in TensorFlow Serving."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"check.{name}"))


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="check.proto",
        package="check",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    kinds = {"int64": 3, "bool": 8, "string": 9}

    def message(name: str, **members: str) -> None:
        entry = file.message_type.add(name=name)
        for number, (member, kind) in enumerate(members.items(), 1):
            repeated = kind.startswith("*")
            field = entry.field.add(
                name=member, number=number, label=3 if repeated else 1
            )
            kind = kind.lstrip("*")
            if kind in kinds:
                field.type = kinds[kind]  # pyright: ignore[reportAttributeAccessIssue]
            else:
                field.type = 11  # pyright: ignore[reportAttributeAccessIssue]
                field.type_name = kind

    message(
        "BatchingParameters",
        max_batch_size=".google.protobuf.Int64Value",
        batch_timeout_micros=".google.protobuf.Int64Value",
        max_enqueued_batches=".google.protobuf.Int64Value",
        num_batch_threads=".google.protobuf.Int64Value",
        thread_pool_name=".google.protobuf.StringValue",
        allowed_batch_sizes="*int64",
        pad_variable_length_inputs="bool",
    )
    message("PrometheusConfig", enable="bool", path="string")
    message("MonitoringConfig", prometheus_config=".check.PrometheusConfig")
    message(
        "SSLConfig",
        server_key="string",
        server_cert="string",
        custom_ca="string",
        client_verify="bool",
    )
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return pool


_POOL = _pool()
