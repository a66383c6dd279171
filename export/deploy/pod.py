"""The pod of a Kubernetes deployment: one TensorFlow Serving and its volumes."""

from __future__ import annotations

from ...runtime.contract import Manifest
from . import serving
from .options import DeployOptions, needs_xla
from .resources import CONFIG_DIR, TLS_DIR, Object, env, labels, resources
from .rights import container_rights, pod_rights

SECRET_DIR = "/etc/serving-secret"


def pod(manifest: Manifest, options: DeployOptions) -> Object:
    """The pod's specification."""
    spec: Object = {
        "automountServiceAccountToken": False,
        # The server ends at once when told to: calls under way get 30 seconds first.
        "terminationGracePeriodSeconds": 60,
        "securityContext": pod_rights(),
        "containers": [_container(manifest, options)],
        "volumes": _volumes(manifest, options),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels(options)},
            }
        ],
    }
    if options.tls != "none":
        spec["initContainers"] = [_tls_container(options)]
    return spec


def _container(manifest: Manifest, options: DeployOptions) -> Object:
    flags = serving.server_flags(
        manifest, options, config_dir=CONFIG_DIR, tls_dir=TLS_DIR
    )
    # Channels are renewed, so that clients see new replicas behind the same name.
    age = "grpc.max_connection_age_ms=300000,grpc.max_connection_age_grace_ms=120000"
    status = {"path": f"/v1/models/{options.name}", "port": "rest"}
    return {
        "name": "serving",
        "image": options.image,
        "command": ["/usr/bin/tensorflow_model_server"],
        "args": [*map(str, flags), f"--grpc_channel_arguments={age}"],
        "env": env(manifest),
        "ports": [
            {"name": "grpc", "containerPort": serving.GRPC_PORT},
            {"name": "rest", "containerPort": serving.REST_PORT},
        ],
        "resources": resources(manifest, options),
        # The ports open when a version has loaded and warmed up: up to 30 minutes.
        "startupProbe": {
            "httpGet": status,
            "periodSeconds": 5,
            "failureThreshold": 360,
        },
        "readinessProbe": {
            "exec": {"command": serving.ready_command(options.name)},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
        },
        "livenessProbe": {
            "tcpSocket": {"port": "grpc"},
            "periodSeconds": 20,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "30"]}}},
        "securityContext": container_rights(),
        "volumeMounts": _mounts(manifest, options),
    }


def _tls_container(options: DeployOptions) -> Object:
    return {
        "name": "tls",
        "image": options.image,
        "command": ["/bin/bash", f"{CONFIG_DIR}/{serving.TLS_SCRIPT}"],
        "args": [SECRET_DIR, f"{TLS_DIR}/ssl.config"],
        "securityContext": container_rights(),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "tls", "mountPath": TLS_DIR},
            {"name": "secret", "mountPath": SECRET_DIR, "readOnly": True},
        ],
    }


def _mounts(manifest: Manifest, options: DeployOptions) -> list[Object]:
    mounts: list[Object] = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},
    ]
    if needs_xla(manifest):
        mounts.append({"name": "compiled", "mountPath": serving.XLA_CACHE_DIR})
    if options.volume_claim:
        mounts.append({"name": "models", "mountPath": "/models", "readOnly": True})
    if options.tls != "none":
        mounts.append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
    return mounts


def _volumes(manifest: Manifest, options: DeployOptions) -> list[Object]:
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": options.name}},
        {"name": "scratch", "emptyDir": {}},
    ]
    if needs_xla(manifest):
        # The pod's own: it outlives a server that crashes, and its processor is the
        # one that was compiled for.
        volumes.append({"name": "compiled", "emptyDir": {}})
    if options.volume_claim:
        claim = {"claimName": options.volume_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    if options.tls != "none":
        volumes += [
            {"name": "tls", "emptyDir": {"medium": "Memory"}},
            {"name": "secret", "secret": {"secretName": f"{options.name}-tls"}},
        ]
    return volumes
