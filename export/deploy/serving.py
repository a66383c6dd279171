"""TensorFlow Serving's own files and flags for an export.

Field names are those of ``model_server_config.proto``, ``session_bundle_config.proto``
(BatchingParameters), ``monitoring_config.proto`` and ``ssl_config.proto``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ...runtime.contract import Manifest
from .options import DeployOptions, batch_sizes, batches, needs_xla

GRPC_PORT = 8500
REST_PORT = 8501
METRICS_PATH = "/monitoring/prometheus/metrics"

MODELS_CONFIG = "models.config"
BATCHING_FILE = "batching_parameters.pbtxt"
MONITORING_FILE = "monitoring.pbtxt"
TLS_SCRIPT = "render-ssl-config.sh"


XLA_CACHE_DIR = "/var/cache/xla"
"""A folder of the server's own, for what XLA has compiled."""


@dataclass(frozen=True)
class Variable:
    """One variable of the server's environment, and why it is there."""

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class Flag:
    """One flag of ``tensorflow_model_server``, and why it is there."""

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


def models_config(options: DeployOptions, base_path: str) -> str:
    """``--model_config_file``: the model, the versions loaded, and their labels."""
    labels = [("stable", options.stable)]
    if options.canary is not None:
        labels.append(("canary", options.canary))
    versions = "".join(f"        versions: {v}\n" for v in options.versions)
    entries = "".join(
        f"    version_labels {{\n      key: {json.dumps(key)}\n"
        f"      value: {version}\n    }}\n"
        for key, version in labels
    )
    return (
        '# Versions are named, not "the latest": a new folder changes nothing until\n'
        "# this file says so. The server reads it again every 30 seconds.\n"
        "model_config_list {\n"
        "  config {\n"
        f"    name: {json.dumps(options.name)}\n"
        f"    base_path: {json.dumps(base_path)}\n"
        '    model_platform: "tensorflow"\n'
        "    model_version_policy {\n"
        "      specific {\n"
        f"{versions}"
        "      }\n"
        "    }\n"
        f"{entries}"
        "  }\n"
        "}\n"
    )


def batching_parameters(manifest: Manifest, options: DeployOptions) -> str:
    """``--batching_parameters_file``.

    Padding is safe for this contract: lengths travel beside the tensors, and what lies
    beyond a length is never read. Two batches run at a time, so that a long prefill
    does not hold up short steps; the wait for company is one millisecond.
    """
    sizes = batch_sizes(manifest, options)
    allowed = "".join(f"allowed_batch_sizes: {size}\n" for size in sizes)
    return (
        f"max_batch_size {{ value: {sizes[-1]} }}\n"
        "batch_timeout_micros { value: 1000 }\n"
        "max_enqueued_batches { value: 64 }\n"
        f"num_batch_threads {{ value: {min(2, options.cpus)} }}\n"
        f"{allowed}"
        "pad_variable_length_inputs: true\n"
    )


def monitoring_config() -> str:
    """``--monitoring_config_file``: Prometheus metrics on the REST port."""
    return f'prometheus_config {{\n  enable: true\n  path: "{METRICS_PATH}"\n}}\n'


def tls_script(options: DeployOptions) -> str:
    """A shell script that makes ``--ssl_config_file`` of PEM files.

    The server wants the PEM text itself inside a text proto, while certificates come
    as files (``tls.key``, ``tls.crt``, ``ca.crt`` of a Kubernetes TLS secret). Bash
    alone, since the stock image has little else.
    """
    mutual = options.tls == "mutual"
    authority = '  field custom_ca "$from/ca.crt"\n' if mutual else ""
    return (
        "#!/bin/bash\n"
        "# render-ssl-config.sh DIR FILE: writes FILE for --ssl_config_file from\n"
        f"# DIR/tls.key, DIR/tls.crt{' and DIR/ca.crt' if mutual else ''}.\n"
        "# FILE holds the private key: keep it out of images and repositories.\n"
        "set -euo pipefail\n"
        "umask 077\n"
        "from=$1 to=$2\n"
        "field() {\n"
        '  printf \'%s: "\' "$1"\n'
        '  while IFS= read -r line || [ -n "$line" ]; do\n'
        "    printf '%s\\\\n' \"${line%$'\\r'}\"\n"
        '  done < "$2"\n'
        "  printf '\"\\n'\n"
        "}\n"
        "{\n"
        '  field server_key "$from/tls.key"\n'
        '  field server_cert "$from/tls.crt"\n'
        f"{authority}"
        f"  echo 'client_verify: {'true' if mutual else 'false'}'\n"
        '} > "$to.partial"\n'
        'mv "$to.partial" "$to"\n'
    )


def server_flags(
    manifest: Manifest, options: DeployOptions, *, config_dir: str, tls_dir: str = ""
) -> list[Flag]:
    """The flags that this export needs, its configuration read from ``config_dir``."""
    flags = [
        Flag("port", str(GRPC_PORT), "gRPC"),
        Flag("rest_api_port", str(REST_PORT), "model status and metrics"),
        Flag(
            "model_config_file",
            f"{config_dir}/{MODELS_CONFIG}",
            "the model, its versions and their labels",
        ),
        Flag(
            "model_config_file_poll_wait_seconds",
            "30",
            "labels move without a restart",
        ),
        Flag(
            "allow_version_labels_for_unavailable_models",
            "true",
            "the labels are there at start, before the versions are loaded",
        ),
        Flag(
            "monitoring_config_file",
            f"{config_dir}/{MONITORING_FILE}",
            "Prometheus metrics",
        ),
        Flag(
            "tensorflow_intra_op_parallelism",
            str(options.cpus),
            "else TensorFlow counts the machine's processors, not the container's",
        ),
        Flag("tensorflow_inter_op_parallelism", str(options.cpus), "the same"),
    ]
    if needs_xla(manifest):
        flags.append(
            Flag(
                "xla_cpu_compilation_enabled",
                "true",
                "the graphs are compiled by XLA: without it the model loads, and "
                "every request fails",
            )
        )
    if batches(manifest, options):
        flags += [
            Flag("enable_batching", "true", "callers share one pass over the weights"),
            Flag(
                "batching_parameters_file",
                f"{config_dir}/{BATCHING_FILE}",
                "batch sizes that the export is prepared for",
            ),
        ]
    if options.tls != "none":
        flags.append(
            Flag("ssl_config_file", f"{tls_dir}/ssl.config", "TLS for gRPC clients")
        )
    return flags


def environment(manifest: Manifest) -> list[Variable]:
    """The environment that this export gains from."""
    variables = [
        Variable(
            "TF_ENABLE_ONEDNN_OPTS",
            "1",
            "oneDNN's products, which TensorFlow uses unasked only on processors with "
            "AVX-512 VNNI",
        ),
    ]
    if needs_xla(manifest):
        variables.append(
            Variable(
                "TF_XLA_FLAGS",
                f"--tf_xla_persistent_cache_directory={XLA_CACHE_DIR}",
                "a server that starts again takes what it has compiled from a file",
            )
        )
    return variables


def ready_command(name: str, rest_port: int = REST_PORT) -> list[str]:
    """A probe: exit code 0 if a version of the model is AVAILABLE.

    The gRPC health service is off by default and blind to models, and the REST model
    status answers 200 in every state of a version, so the state itself is read. The
    stock image has bash and grep, but no curl.
    """
    script = (
        f"exec 3<>/dev/tcp/127.0.0.1/{rest_port} && "
        f"printf 'GET /v1/models/{name} HTTP/1.1\\r\\nHost: localhost\\r\\n"
        "Connection: close\\r\\n\\r\\n' >&3 && "
        "grep -q '\"AVAILABLE\"' <&3"
    )
    return ["/bin/bash", "-c", script]
