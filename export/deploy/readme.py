"""The page that explains the deployment files, written beside them."""

from __future__ import annotations

from ...runtime.contract import Manifest
from ..footprint import weights_bytes
from . import gateway, serving
from .options import DeployOptions, batches, needs_xla
from .resources import CONFIG_DIR, TLS_DIR, memory_mib


def readme(manifest: Manifest, options: DeployOptions) -> str:
    """What each file is for, and every flag with its reason."""
    flags = serving.server_flags(
        manifest, options, config_dir=CONFIG_DIR, tls_dir=TLS_DIR
    )
    table = "\n".join(f"| `{flag}` | {flag.why} |" for flag in flags)
    variables = "\n".join(f"| `{v}` | {v.why} |" for v in serving.environment(manifest))
    weights = weights_bytes(manifest.config, manifest.weights_dtype) / 2**20
    labels = "`stable`" if options.canary is None else "`stable` and `canary`"
    loaded = max(2, len(options.versions))
    return f"""# Serving `{options.name}`

{_kind(manifest)}, {manifest.weights_dtype} weights ({weights:,.0f} MiB),
{manifest.cache_dtype} cache. A server needs about {memory_mib(manifest, options):,} MiB
({loaded} versions loaded, full caches of {_callers(manifest, options)} rows)
and {options.cpus} processors. Labels: {labels}.

| file | for |
|---|---|
| `models.config` | TensorFlow Serving: versions and labels |
{_batching_row(manifest, options)}\
| `monitoring.pbtxt` | TensorFlow Serving: metrics at `{serving.METRICS_PATH}` |
| `render-ssl-config.sh` | makes the server's TLS file of PEM files |
| `compose.yaml` | one machine: `docker compose -f compose.yaml up` |
| `kubernetes.yaml` | a cluster: `kubectl apply -f kubernetes.yaml` |
| `kserve.yaml` | KServe: `kubectl apply -f kserve.yaml` |
{_gateway_row(options)}\

The flags, without which the export would not be served as intended:

| flag | why |
|---|---|
{table}

Its environment:

| variable | why |
|---|---|
{variables}

Clients in the cluster use
`dns:///{options.name}.NAMESPACE.svc.cluster.local:{serving.GRPC_PORT}`. The service is
headless, so that a client balances its calls over all replicas; any call may go to any
of them.

The model is read from `{options.storage_uri}`, the folder that holds the numbered
versions. To change the versions served, write these files again and apply them;
servers follow within two minutes:

    optserve deploy OUT --stable 1 --canary 2     # version 2 beside version 1
    optserve deploy OUT --stable 2 --keep 1       # promote it, 1 stays loaded
    optserve deploy OUT --stable 1 --keep 2       # or go back
    optserve deploy OUT --stable 2                # let 1 go

A label only moves to a version that is loaded already: hence `--keep`. A client that
asks for no label gets the newest version loaded, the canary included: have clients
ask for `stable`.
{_gateway(options)}{_tls(options)}"""


def _kind(manifest: Manifest) -> str:
    framework = {"tf": "TensorFlow", "jax": "JAX"}.get(
        manifest.framework, manifest.framework
    )
    return (
        f"{framework} graphs, {'compiled by XLA' if needs_xla(manifest) else 'plain'}"
    )


def _callers(manifest: Manifest, options: DeployOptions) -> int:
    return options.max_batch if batches(manifest, options) else options.cpus


def _batching_row(manifest: Manifest, options: DeployOptions) -> str:
    if not batches(manifest, options):
        return ""
    return f"| `{serving.BATCHING_FILE}` | TensorFlow Serving: merging requests |\n"


def _gateway_row(options: DeployOptions) -> str:
    if not options.gateway_image:
        return ""
    return (
        "| `gateway.yaml` | a gateway before it: `kubectl apply -f gateway.yaml` |\n"
        "| `grafana.json` | its dashboard, to be imported by Grafana |\n"
    )


def _gateway(options: DeployOptions) -> str:
    if not options.gateway_image:
        return ""
    return f"""
The gateway (`gateway.yaml`; compose and `kserve.yaml` have it, too) speaks OpenAI's
protocol at port {gateway.PORT} of the service `{options.name}-gateway`, or of this
machine. Its image is yours: Python, and `pip install 'optserve[gateway]'` with
`ENTRYPOINT ["optserve"]`.
It has no API keys until `--keys FILE` is added. Its autoscaler follows the queue, so
the cluster needs an adapter that serves Prometheus' `vllm:num_requests_waiting` as the
pods' metric `num_requests_waiting`.
"""


def _tls(options: DeployOptions) -> str:
    if options.tls == "none":
        return ""
    files = "tls.key, tls.crt" + (" and ca.crt" if options.tls == "mutual" else "")
    return f"""
TLS: the secret `{options.name}-tls` holds {files} (what
cert-manager writes); an init container turns it into the server's file. On one machine:

    bash render-ssl-config.sh CERTIFICATES "$TLS_DIR/ssl.config"

The REST port stays without TLS: let only probes and the metrics collector reach it.
"""
