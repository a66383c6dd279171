"""A KServe object that serves an export: serving.kserve.io/v1beta1."""

from __future__ import annotations

from dataclasses import replace

from ...runtime.contract import Manifest
from . import serving
from .gateway import gateway_objects
from .options import DeployOptions
from .resources import TLS_DIR, Object, env, labels, resources

_GRPC_PORT = 9000  # of KServe's TensorFlow Serving runtime


def kserve_objects(manifest: Manifest, options: DeployOptions) -> list[Object]:
    """The InferenceService, and a gateway before it where an image of one is named."""
    objects = [kserve_object(manifest, options)]
    if options.gateway_image:
        service = _headless_service(options)
        target = f"dns:///{service['metadata']['name']}:{_GRPC_PORT}"
        plain = replace(options, tls="none")  # as the runtime serves
        objects += [service, *gateway_objects(plain, target=target)]
    return objects


def _headless_service(options: DeployOptions) -> Object:
    """The predictor's pods by their addresses, so that calls balance over them."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{options.name}-grpc", "labels": labels(options)},
        "spec": {
            "clusterIP": "None",
            "selector": {
                "serving.kserve.io/inferenceservice": options.name,
                "component": "predictor",
            },
            "ports": [{"name": "grpc", "port": _GRPC_PORT, "targetPort": _GRPC_PORT}],
        },
    }


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
            "labels": labels(options),
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
                        {"name": "h2c", "containerPort": _GRPC_PORT, "protocol": "TCP"}
                    ],
                    "readinessProbe": {
                        "exec": {"command": serving.ready_command(options.name, 8080)},
                        "periodSeconds": 5,
                        "timeoutSeconds": 3,
                    },
                    # Nothing keeps a folder of its runtime's containers.
                    "env": [v for v in env(manifest) if v["name"] != "TF_XLA_FLAGS"],
                    "resources": resources(manifest, options),
                },
            }
        },
    }
