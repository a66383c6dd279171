"""Kubernetes and KServe objects that serve an export.

Field names are those of the Kubernetes API (apps/v1, v1, autoscaling/v2, policy/v1)
and of KServe's serving.kserve.io/v1beta1.
"""

from __future__ import annotations

from typing import Any

from ...runtime.contract import Manifest
from ..footprint import serving_bytes
from . import serving
from .options import DeployOptions, batches

Object = dict[str, Any]

CONFIG_DIR = "/etc/serving"
TLS_DIR = "/etc/serving-tls"
SECRET_DIR = "/etc/serving-secret"

_MIB = 1024**2


def kubernetes_objects(manifest: Manifest, options: DeployOptions) -> list[Object]:
    """ConfigMap, Deployment, headless Service, autoscaler and disruption budget."""
    return [
        _config_map(manifest, options),
        _deployment(manifest, options),
        _service(options),
        _autoscaler(options),
        _disruption_budget(options),
    ]


def kserve_object(manifest: Manifest, options: DeployOptions) -> Object:
    """An InferenceService on KServe's own TensorFlow Serving runtime.

    In the Standard (raw) mode, which is plain Deployments: gRPC channels stay open and
    balance on the client's side. The runtime names the model after the object, serves
    the newest version and gives its ports; only the flags of this export are added.
    The batching file is read from the folder ``deploy`` beside the versions.
    """
    flags = serving.server_flags(
        manifest, options, config_dir="/mnt/models/deploy", tls_dir=TLS_DIR
    )
    kept = {
        "xla_cpu_compilation_enabled",
        "enable_batching",
        "batching_parameters_file",
        "tensorflow_intra_op_parallelism",
        "tensorflow_inter_op_parallelism",
        "monitoring_config_file",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": options.name,
            "labels": _labels(options),
            "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        },
        "spec": {
            "predictor": {
                "minReplicas": options.replicas,
                "maxReplicas": options.max_replicas,
                "scaleMetric": "cpu",
                "scaleTarget": 70,
                "model": {
                    "modelFormat": {"name": "tensorflow", "version": "2"},
                    "protocolVersion": "grpc-v1",
                    "storageUri": options.storage_uri,
                    "args": [str(flag) for flag in flags if flag.name in kept],
                    "ports": [
                        {"name": "h2c", "containerPort": 9000, "protocol": "TCP"}
                    ],
                    "readinessProbe": {
                        "exec": {"command": serving.ready_command(options.name, 8080)},
                        "periodSeconds": 5,
                        "timeoutSeconds": 3,
                    },
                    "resources": _resources(manifest, options),
                },
            }
        },
    }


def memory_mib(manifest: Manifest, options: DeployOptions) -> int:
    """Memory of one server in MiB, rounded up to a quarter of a GiB."""
    needed = serving_bytes(
        manifest.config,
        weights=manifest.weights_dtype,
        cache=manifest.cache_dtype,
        framework=manifest.framework,
        versions=max(2, len(options.versions)),
        rows=options.max_batch if batches(manifest, options) else options.cpus,
    )
    return -(-needed // (256 * _MIB)) * 256


def _labels(options: DeployOptions) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "tensorflow-serving",
        "app.kubernetes.io/instance": options.name,
    }


def _metadata(options: DeployOptions) -> Object:
    return {"name": options.name, "labels": _labels(options)}


def _resources(manifest: Manifest, options: DeployOptions) -> Object:
    memory = f"{memory_mib(manifest, options)}Mi"
    cpu = str(options.cpus)
    return {
        "requests": {"cpu": cpu, "memory": memory},
        "limits": {"cpu": cpu, "memory": memory},
    }


def _config_map(manifest: Manifest, options: DeployOptions) -> Object:
    data = {
        serving.MODELS_CONFIG: serving.models_config(
            options, options.cluster_base_path
        ),
        serving.MONITORING_FILE: serving.monitoring_config(),
    }
    if batches(manifest, options):
        data[serving.BATCHING_FILE] = serving.batching_parameters(manifest, options)
    if options.tls != "none":
        data[serving.TLS_SCRIPT] = serving.tls_script(options)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(options),
        "data": data,
    }


def _deployment(manifest: Manifest, options: DeployOptions) -> Object:
    labels = _labels(options)
    # No `replicas`: the autoscaler owns the number, and applying this file again must
    # not reset it.
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(options),
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(serving.REST_PORT),
                        "prometheus.io/path": serving.METRICS_PATH,
                    },
                },
                "spec": _pod(manifest, options),
            },
        },
    }


def _pod(manifest: Manifest, options: DeployOptions) -> Object:
    pod: Object = {
        "automountServiceAccountToken": False,
        # The server ends at once when told to: calls under way get 30 seconds first.
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(manifest, options)],
        "volumes": _volumes(options),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(options)},
            }
        ],
    }
    if options.tls != "none":
        pod["initContainers"] = [_tls_container(options)]
    return pod


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
        "ports": [
            {"name": "grpc", "containerPort": serving.GRPC_PORT},
            {"name": "rest", "containerPort": serving.REST_PORT},
        ],
        "resources": _resources(manifest, options),
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
        "securityContext": _locked_down(),
        "volumeMounts": _mounts(options),
    }


def _locked_down() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _tls_container(options: DeployOptions) -> Object:
    return {
        "name": "tls",
        "image": options.image,
        "command": ["/bin/bash", f"{CONFIG_DIR}/{serving.TLS_SCRIPT}"],
        "args": [SECRET_DIR, f"{TLS_DIR}/ssl.config"],
        "securityContext": _locked_down(),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "tls", "mountPath": TLS_DIR},
            {"name": "secret", "mountPath": SECRET_DIR, "readOnly": True},
        ],
    }


def _mounts(options: DeployOptions) -> list[Object]:
    mounts: list[Object] = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},
    ]
    if options.volume_claim:
        mounts.append({"name": "models", "mountPath": "/models", "readOnly": True})
    if options.tls != "none":
        mounts.append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
    return mounts


def _volumes(options: DeployOptions) -> list[Object]:
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": options.name}},
        {"name": "scratch", "emptyDir": {}},
    ]
    if options.volume_claim:
        claim = {"claimName": options.volume_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    if options.tls != "none":
        volumes += [
            {"name": "tls", "emptyDir": {"medium": "Memory"}},
            {"name": "secret", "secret": {"secretName": f"{options.name}-tls"}},
        ]
    return volumes


def _service(options: DeployOptions) -> Object:
    """Headless, so that ``dns:///`` resolves to every ready replica.

    A balanced virtual address would pin a client's one HTTP/2 channel to one replica.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(options),
        "spec": {
            "clusterIP": "None",
            "selector": _labels(options),
            "ports": [
                {"name": "grpc", "port": serving.GRPC_PORT, "targetPort": "grpc"},
                {"name": "rest", "port": serving.REST_PORT, "targetPort": "rest"},
            ],
        },
    }


def _autoscaler(options: DeployOptions) -> Object:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(options),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": options.name,
            },
            "minReplicas": options.replicas,
            "maxReplicas": options.max_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 70},
                    },
                }
            ],
            # A replica takes a while to load and warm up: leave slowly.
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def _disruption_budget(options: DeployOptions) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(options),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": _labels(options)},
        },
    }
