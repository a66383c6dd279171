"""Deployment files for an export: TensorFlow Serving, compose, Kubernetes, KServe.

Everything follows from the manifest and a few options, so the files carry exactly
the flags that the export needs. They are written into ``OUT/deploy``, beside the
numbered versions: TensorFlow Serving only looks at folders whose names are numbers,
and whoever copies the model copies its configuration.
"""

from __future__ import annotations

from pathlib import Path

from ...runtime.contract import Manifest
from ..publish import write_whole
from . import serving
from .compose import compose_file
from .gateway import gateway_objects
from .grafana import dashboard
from .kserve import kserve_objects
from .kubernetes import kubernetes_objects
from .options import DeployOptions, batches, needs_xla
from .readme import readme
from .yaml_text import yaml_text

__all__ = ["DeployOptions", "deployment_files", "needs_xla", "write_deployment"]

FOLDER = "deploy"
GATEWAY_FILE = "gateway.yaml"
GRAFANA_FILE = "grafana.json"
_SOMETIMES = {serving.BATCHING_FILE, GATEWAY_FILE, GRAFANA_FILE}


def deployment_files(manifest: Manifest, options: DeployOptions) -> dict[str, str]:
    """Every file's name and text."""
    base_path = f"/models/{options.name}"
    files = {
        serving.MODELS_CONFIG: serving.models_config(options, base_path),
        serving.MONITORING_FILE: serving.monitoring_config(),
        serving.TLS_SCRIPT: serving.tls_script(options),
        "compose.yaml": yaml_text(compose_file(manifest, options)),
        "kubernetes.yaml": yaml_text(*kubernetes_objects(manifest, options)),
        "kserve.yaml": yaml_text(*kserve_objects(manifest, options)),
        "README.md": readme(manifest, options),
    }
    if batches(manifest, options):
        text = serving.batching_parameters(manifest, options)
        files[serving.BATCHING_FILE] = text
    if options.gateway_image:
        files[GATEWAY_FILE] = yaml_text(*gateway_objects(options))
        files[GRAFANA_FILE] = dashboard(options.name)
    return dict(sorted(files.items()))


def write_deployment(
    manifest: Manifest, directory: str | Path, options: DeployOptions | None = None
) -> list[Path]:
    """Write the deployment files into ``directory``; each appears whole.

    A file of an earlier writing that this one has no use for is removed.

    Returns:
        The files written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = deployment_files(manifest, options or DeployOptions())
    for name, text in files.items():
        write_whole(directory / name, text)
    for name in _SOMETIMES - files.keys():
        (directory / name).unlink(missing_ok=True)
    return [directory / name for name in files]
