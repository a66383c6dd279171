"""What every object of a cluster says: labels, memory and processors, folders."""

from __future__ import annotations

from typing import Any

from ...runtime.contract import Manifest
from ..footprint import serving_bytes
from . import serving
from .options import DeployOptions, batches

Object = dict[str, Any]

CONFIG_DIR = "/etc/serving"
TLS_DIR = "/etc/serving-tls"

_MIB = 1024**2


def memory_mib(manifest: Manifest, options: DeployOptions) -> int:
    """Memory of one server in MiB, rounded up to a quarter of a GiB."""
    needed = serving_bytes(
        manifest.config,
        weights=manifest.weights_dtype,
        cache=manifest.cache_dtype,
        versions=max(2, len(options.versions)),
        rows=options.max_batch if batches(manifest, options) else options.cpus,
        sessions=manifest.sessions,
    )
    return -(-needed // (256 * _MIB)) * 256


def env(manifest: Manifest) -> list[Object]:
    """The server's environment, as containers have it."""
    return [{"name": v.name, "value": v.value} for v in serving.environment(manifest)]


def labels(options: DeployOptions) -> dict[str, str]:
    """Labels of all objects of one model."""
    return {
        "app.kubernetes.io/name": "tensorflow-serving",
        "app.kubernetes.io/instance": options.name,
    }


def metadata(options: DeployOptions) -> Object:
    """An object's name and labels."""
    return {"name": options.name, "labels": labels(options)}


def resources(manifest: Manifest, options: DeployOptions) -> Object:
    """Requests and limits of one server, equal, so that it is not evicted first."""
    memory = f"{memory_mib(manifest, options)}Mi"
    cpu = str(options.cpus)
    return {
        "requests": {"cpu": cpu, "memory": memory},
        "limits": {"cpu": cpu, "memory": memory},
    }
