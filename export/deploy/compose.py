"""A docker compose file that serves an export on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...runtime.contract import Manifest
from . import gateway, serving
from .options import DeployOptions, needs_xla
from .resources import CONFIG_DIR, TLS_DIR, memory_mib
from .rights import service_rights

COMPILED = "compiled"
"""Name of the volume that keeps what XLA has compiled."""


def compose_file(manifest: Manifest, options: DeployOptions) -> dict[str, Any]:
    """The compose document.

    The base folder is the one above this file, unless ``MODEL_DIR`` says otherwise.
    Ports are bound to this machine alone: the server has no authentication.
    """
    document: dict[str, Any] = {
        "name": options.name,
        "services": {"serving": _server(manifest, options)},
    }
    if options.gateway_image:
        document["services"]["gateway"] = gateway.compose_service(options)
    if needs_xla(manifest):
        document["volumes"] = {COMPILED: {}}
    return document


def _server(manifest: Manifest, options: DeployOptions) -> dict[str, Any]:
    flags = serving.server_flags(
        manifest, options, config_dir=CONFIG_DIR, tls_dir=TLS_DIR
    )
    limits = {
        "cpus": str(options.cpus),
        "memory": f"{memory_mib(manifest, options)}m",
    }
    return {
        "image": options.image,
        "entrypoint": ["/usr/bin/tensorflow_model_server"],
        "command": [str(flag) for flag in flags],
        "environment": {v.name: v.value for v in serving.environment(manifest)},
        "ports": [
            f"127.0.0.1:{port}:{port}"
            for port in (serving.GRPC_PORT, serving.REST_PORT)
        ],
        "volumes": _volumes(manifest, options),
        **service_rights(),
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", *_escaped(serving.ready_command(options.name))],
            "interval": "5s",
            "timeout": "3s",
            "start_period": "30m",
            "retries": 3,
        },
        "deploy": {"resources": {"limits": limits}},
    }


def _volumes(manifest: Manifest, options: DeployOptions) -> list[str]:
    volumes = [
        f"${{MODEL_DIR:-..}}:/models/{options.name}:ro",
        # The folder, not its files: a file replaced by renaming would not be seen.
        f".:{CONFIG_DIR}:ro",
    ]
    if needs_xla(manifest):
        volumes.append(f"{COMPILED}:{serving.XLA_CACHE_DIR}")
    if options.tls != "none":
        # No default: the file holds a private key and lives outside this folder.
        volumes.append(f"${{TLS_DIR:?folder of ssl.config}}:{TLS_DIR}:ro")
    return volumes


def _escaped(words: Sequence[str]) -> list[str]:
    """Compose would read a single dollar as a variable."""
    return [word.replace("$", "$$") for word in words]
