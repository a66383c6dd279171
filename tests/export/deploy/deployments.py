"""Exports and options that the deployment files are tried with."""

from __future__ import annotations

from optserve.export.deploy import DeployOptions
from optserve.runtime.contract import Manifest

CONFIG_125M = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
}

# tensorflow_model_server's flags, from its `--help`.
KNOWN_FLAGS = {
    "port",
    "rest_api_port",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "allow_version_labels_for_unavailable_models",
    "monitoring_config_file",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "xla_cpu_compilation_enabled",
    "enable_batching",
    "batching_parameters_file",
    "ssl_config_file",
    "grpc_channel_arguments",
}

OPTIONS = {
    "defaults": DeployOptions(),
    "canary": DeployOptions(name="opt-125m", stable=3, canary=4, keep=(2, 3), cpus=2),
    "tls": DeployOptions(tls="server", storage="gs://bucket/models/opt/"),
    "mutual": DeployOptions(tls="mutual", storage="pvc://disk/a/b", batching=True),
    "gateway": DeployOptions(gateway_image="registry/gateway:1", tls="mutual"),
    "alone": DeployOptions(max_batch=1, replicas=1, max_replicas=1),
}


def manifest(framework: str = "tf", compiler: str = "none", **more) -> Manifest:
    return Manifest(
        config=CONFIG_125M,
        framework=framework,
        compiler=compiler,
        weights_dtype="float32",
        cache_dtype="float32",
        signatures=["prefill", "decode"],
        **more,
    )


MANIFESTS = {
    "tf": manifest(),
    "xla": manifest(compiler="xla"),
    "jax": manifest("jax", "xla", batch_sizes=[1, 4]),
}
