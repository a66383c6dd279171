"""The gateway in front of the servers: its container, and its objects in a cluster."""

from __future__ import annotations

from typing import Any

from . import serving
from .options import DeployOptions
from .resources import Object
from .rights import container_rights, pod_rights, service_rights

PORT = 8000
CERTIFICATES = "/etc/serving-secret"
WAITING_PER_POD = 4
"""Generations that wait, of each gateway, beyond which there should be one more."""

_READY = (
    "import urllib.request as r; "
    f"r.urlopen('http://127.0.0.1:{PORT}/ready', timeout=3).read()"
)


def command(options: DeployOptions, target: str) -> list[str]:
    """The arguments of the image, whose entry point is ``optserve``."""
    arguments = ["gateway", "--target", target, "--name", options.name]
    arguments += ["--host", "0.0.0.0", "--port", str(PORT), "--json-log"]
    if options.tls != "none":
        arguments += ["--tls-ca", f"{CERTIFICATES}/ca.crt"]
    if options.tls == "mutual":
        arguments += ["--tls-cert", f"{CERTIFICATES}/tls.crt"]
        arguments += ["--tls-key", f"{CERTIFICATES}/tls.key"]
    return arguments


def compose_service(options: DeployOptions) -> dict[str, Any]:
    """The service of the compose file, beside the server's."""
    service: dict[str, Any] = {
        "image": options.gateway_image,
        "command": command(options, f"serving:{serving.GRPC_PORT}"),
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "depends_on": {"serving": {"condition": "service_healthy"}},
        **service_rights(),
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _READY],
            "interval": "5s",
            "timeout": "5s",
            "retries": 3,
        },
    }
    if options.tls != "none":
        folder = "${CERTIFICATES:?folder of ca.crt}"
        service["volumes"] = [f"{folder}:{CERTIFICATES}:ro"]
    return service


def gateway_objects(options: DeployOptions, *, target: str = "") -> list[Object]:
    """Deployment, Service and autoscaler, before the servers at ``target`` (by default
    those of ``kubernetes.yaml``).

    The autoscaler follows the queue: its metric comes of Prometheus through an adapter
    of custom metrics, as ``vllm:num_requests_waiting`` without the prefix.
    """
    name = f"{options.name}-gateway"
    labels = {
        "app.kubernetes.io/name": "optserve-gateway",
        "app.kubernetes.io/instance": options.name,
    }
    metadata = {"name": name, "labels": labels}
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(PORT),
        "prometheus.io/path": "/metrics",
    }
    template = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": _pod(options, target or _cluster_target(options)),
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": labels,
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }
    return [deployment, service, _autoscaler(name, metadata, options)]


def _cluster_target(options: DeployOptions) -> str:
    return f"dns:///{options.name}:{serving.GRPC_PORT}"


def _pod(options: DeployOptions, target: str) -> Object:
    probe = {"port": "http"}
    mounts: list[Object] = [{"name": "scratch", "mountPath": "/tmp"}]
    volumes: list[Object] = [{"name": "scratch", "emptyDir": {}}]
    if options.tls != "none":
        secret = {"secretName": f"{options.name}-tls"}
        volumes.append({"name": "secret", "secret": secret})
        mounts.append({"name": "secret", "mountPath": CERTIFICATES, "readOnly": True})
    sizes = {"cpu": "1", "memory": "2Gi"}
    container = {
        "name": "gateway",
        "image": options.gateway_image,
        "args": command(options, target),
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": sizes, "limits": sizes},
        "readinessProbe": {"httpGet": {"path": "/ready", **probe}, "periodSeconds": 5},
        # No new callers come by then: SIGTERM closes the port at once.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "livenessProbe": {"httpGet": {"path": "/health", **probe}, "periodSeconds": 20},
        "securityContext": container_rights(),
        "volumeMounts": mounts,
    }
    return {
        "automountServiceAccountToken": False,
        # Streams under way get the gateway's 30 seconds.
        "terminationGracePeriodSeconds": 60,
        "securityContext": pod_rights(),
        "containers": [container],
        "volumes": volumes,
    }


def _autoscaler(name: str, metadata: Object, options: DeployOptions) -> Object:
    waiting = {
        "metric": {"name": "num_requests_waiting"},
        "target": {"type": "AverageValue", "averageValue": str(WAITING_PER_POD)},
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": name,
            },
            "minReplicas": options.replicas,
            "maxReplicas": options.max_replicas,
            "metrics": [{"type": "Pods", "pods": waiting}],
        },
    }
