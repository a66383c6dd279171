"""A docker compose file that serves an export on one machine."""

from __future__ import annotations

from typing import Any

from ...runtime.contract import Manifest
from . import gateway, serving
from .options import DeployOptions, needs_xla
from .resources import CONFIG_DIR, TLS_DIR, memory_mib

COMPILED = "compiled"
"""Name of the volume that keeps what XLA has compiled."""


def compose_file(manifest: Manifest, options: DeployOptions) -> dict[str, Any]:
    """The compose document.

    The base folder is the one above this file, unless ``MODEL_DIR`` says otherwise.
    Ports are bound to this machine alone: the server has no authentication.
    """
    flags = serving.server_flags(
        manifest, options, config_dir=CONFIG_DIR, tls_dir=TLS_DIR
    )
    volumes = [
        f"${{MODEL_DIR:-..}}:/models/{options.name}:ro",
        # The folder, not its files: a file replaced by renaming would not be seen.
        f".:{CONFIG_DIR}:ro",
    ]
    keeps_compiled = needs_xla(manifest)
    if keeps_compiled:
        volumes.append(f"{COMPILED}:{serving.XLA_CACHE_DIR}")
    if options.tls != "none":
        # No default: the file holds a private key and lives outside this folder.
        volumes.append(f"${{TLS_DIR:?folder of ssl.config}}:{TLS_DIR}:ro")
    document: dict[str, Any] = {
        "name": options.name,
        "services": {
            "serving": {
                "image": options.image,
                "entrypoint": ["/usr/bin/tensorflow_model_server"],
                "command": [str(flag) for flag in flags],
                "environment": {v.name: v.value for v in serving.environment(manifest)},
                "ports": [
                    f"127.0.0.1:{port}:{port}"
                    for port in (serving.GRPC_PORT, serving.REST_PORT)
                ],
                "volumes": volumes,
                "read_only": True,
                "tmpfs": ["/tmp"],
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
                "restart": "unless-stopped",
                "healthcheck": {
                    "test": [
                        "CMD",
                        *(
                            # Compose would read a single dollar as a variable.
                            part.replace("$", "$$")
                            for part in serving.ready_command(options.name)
                        ),
                    ],
                    "interval": "5s",
                    "timeout": "3s",
                    "start_period": "30m",
                    "retries": 3,
                },
                "deploy": {
                    "resources": {
                        "limits": {
                            "cpus": str(options.cpus),
                            "memory": f"{memory_mib(manifest, options)}m",
                        }
                    }
                },
            }
        },
    }
    if options.gateway_image:
        document["services"]["gateway"] = gateway.compose_service(options)
    if keeps_compiled:
        document["volumes"] = {COMPILED: {}}
    return document
