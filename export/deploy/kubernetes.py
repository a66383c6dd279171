"""Kubernetes objects that serve an export.

Field names are those of the Kubernetes API (apps/v1, v1, autoscaling/v2, policy/v1).
"""

from __future__ import annotations

from ...runtime.contract import Manifest
from . import serving
from .options import DeployOptions, batches
from .pod import pod
from .resources import Object, labels, metadata


def kubernetes_objects(manifest: Manifest, options: DeployOptions) -> list[Object]:
    """ConfigMap, Deployment, headless Service, autoscaler and disruption budget."""
    return [
        _config_map(manifest, options),
        _deployment(manifest, options),
        _service(options),
        _autoscaler(options),
        _disruption_budget(options),
    ]


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
        "metadata": metadata(options),
        "data": data,
    }


def _deployment(manifest: Manifest, options: DeployOptions) -> Object:
    # No `replicas`: the autoscaler owns the number, and applying this file again must
    # not reset it.
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(options),
        "spec": {
            "selector": {"matchLabels": labels(options)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": labels(options),
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(serving.REST_PORT),
                        "prometheus.io/path": serving.METRICS_PATH,
                    },
                },
                "spec": pod(manifest, options),
            },
        },
    }


def _service(options: DeployOptions) -> Object:
    """Headless, so that ``dns:///`` resolves to every ready replica.

    A balanced virtual address would pin a client's one HTTP/2 channel to one replica.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(options),
        "spec": {
            "clusterIP": "None",
            "selector": labels(options),
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
        "metadata": metadata(options),
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
        "metadata": metadata(options),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": labels(options)},
        },
    }
