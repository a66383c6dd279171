"""Deployment files: validated by official protos and strict schemas."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml as pyyaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from optserve.export.contract import Manifest
from optserve.export.deploy import (
    DeployOptions,
    deployment_files,
    serving,
    write_deployment,
)
from optserve.export.layout import MANIFEST_PATH
from optserve.runtime.cli import main

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


@pytest.fixture(params=OPTIONS)
def options(request) -> DeployOptions:
    return OPTIONS[request.param]


@pytest.fixture(params=MANIFESTS)
def made_of(request) -> Manifest:
    return MANIFESTS[request.param]


@pytest.fixture
def files(made_of: Manifest, options: DeployOptions) -> dict[str, str]:
    return deployment_files(made_of, options)


@pytest.fixture(scope="module")
def schemas(data_dir: Path) -> dict:
    folder = data_dir / "schemas"
    return {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("kubernetes", "compose")
    }


def proto(name: str):
    """A message class of TensorFlow Serving that its Python package leaves out."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"check.{name}"))


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="check.proto",
        package="check",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    kinds = {"int64": 3, "bool": 8, "string": 9}

    def message(name: str, **members: str) -> None:
        entry = file.message_type.add(name=name)
        for number, (member, kind) in enumerate(members.items(), 1):
            repeated = kind.startswith("*")
            field = entry.field.add(
                name=member, number=number, label=3 if repeated else 1
            )
            kind = kind.lstrip("*")
            if kind in kinds:
                field.type = kinds[kind]  # pyright: ignore[reportAttributeAccessIssue]
            else:
                field.type = 11  # pyright: ignore[reportAttributeAccessIssue]
                field.type_name = kind

    message(
        "BatchingParameters",
        max_batch_size=".google.protobuf.Int64Value",
        batch_timeout_micros=".google.protobuf.Int64Value",
        max_enqueued_batches=".google.protobuf.Int64Value",
        num_batch_threads=".google.protobuf.Int64Value",
        thread_pool_name=".google.protobuf.StringValue",
        allowed_batch_sizes="*int64",
        pad_variable_length_inputs="bool",
    )
    message("PrometheusConfig", enable="bool", path="string")
    message("MonitoringConfig", prometheus_config=".check.PrometheusConfig")
    message(
        "SSLConfig",
        server_key="string",
        server_cert="string",
        custom_ca="string",
        client_verify="bool",
    )
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return pool


_POOL = _pool()


def test_models_config_is_a_model_server_config(options, files):
    config_pb2 = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2"
    )
    parsed = text_format.Parse(files["models.config"], config_pb2.ModelServerConfig())
    (config,) = parsed.model_config_list.config
    assert config.name == options.name
    assert config.base_path == f"/models/{options.name}"
    assert config.model_platform == "tensorflow"
    served = list(config.model_version_policy.specific.versions)
    assert served == sorted({options.stable, options.canary, *options.keep} - {None})
    labels = {"stable": options.stable, "canary": options.canary}
    assert dict(config.version_labels) == {
        label: version for label, version in labels.items() if version is not None
    }


def test_batching_parameters(made_of, files):
    if serving.BATCHING_FILE not in files:
        assert "--enable_batching" not in files["kubernetes.yaml"]
        return
    parsed = text_format.Parse(
        files[serving.BATCHING_FILE], proto("BatchingParameters")()
    )
    sizes = list(parsed.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == parsed.max_batch_size.value  # the server insists
    assert parsed.pad_variable_length_inputs
    if made_of.batch_sizes:
        assert sizes == made_of.batch_sizes


def test_batching_is_for_exports_that_gain_from_it():
    on = {
        name: serving.BATCHING_FILE in deployment_files(made_of, DeployOptions())
        for name, made_of in MANIFESTS.items()
    }
    assert on == {"tf": True, "xla": False, "jax": True}


def test_monitoring_config(files):
    parsed = text_format.Parse(
        files[serving.MONITORING_FILE], proto("MonitoringConfig")()
    )
    assert parsed.prometheus_config.enable
    assert parsed.prometheus_config.path == serving.METRICS_PATH


def test_flags_are_those_the_export_needs(made_of, options):
    flags = serving.server_flags(made_of, options, config_dir="/c", tls_dir="/t")
    names = [flag.name for flag in flags]
    assert len(set(names)) == len(names)
    assert set(names) <= KNOWN_FLAGS
    assert ("xla_cpu_compilation_enabled" in names) == (made_of.compiler == "xla")
    assert ("ssl_config_file" in names) == (options.tls != "none")


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_cluster_objects_fit_the_schema(name, files, schemas):
    for document in pyyaml.safe_load_all(files[f"{name}.yaml"]):
        jsonschema.validate(
            document, {**schemas["kubernetes"], "$ref": f"#/$defs/{document['kind']}"}
        )


def test_compose_fits_the_schema(files, schemas):
    jsonschema.validate(pyyaml.safe_load(files["compose.yaml"]), schemas["compose"])


def test_the_schema_refuses_a_misspelt_field(schemas):
    files = deployment_files(MANIFESTS["tf"], DeployOptions())
    documents = list(pyyaml.safe_load_all(files["kubernetes.yaml"]))
    deployment = next(d for d in documents if d["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(deployment, schemas["kubernetes"])


def test_cluster_objects_refer_to_each_other(options, files):
    found = {d["kind"]: d for d in pyyaml.safe_load_all(files["kubernetes.yaml"])}
    template = found["Deployment"]["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    selector = found["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    budget = found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert budget.items() <= labels.items()
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == found["Deployment"]["metadata"]["name"]
    assert "replicas" not in found["Deployment"]["spec"]
    assert found["Service"]["spec"]["clusterIP"] == "None"

    volumes = {v["name"]: v for v in pod["volumes"]}
    ports = {p["name"] for c in pod["containers"] for p in c["ports"]}
    assert {p["targetPort"] for p in found["Service"]["spec"]["ports"]} <= ports
    for container in pod["containers"] + pod.get("initContainers", []):
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted <= volumes.keys()
    assert (
        volumes["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    )
    assert ("models" in volumes) == options.storage_uri.startswith("pvc://")
    _flags_point_at_files(pod["containers"][0]["args"], found["ConfigMap"]["data"])


def test_compose_serves_this_folder(files):
    service = pyyaml.safe_load(files["compose.yaml"])["services"]["serving"]
    assert any(v.startswith("${MODEL_DIR:-..}:/models/") for v in service["volumes"])
    _flags_point_at_files(service["command"], files)


def _flags_point_at_files(flags: list[str], names) -> None:
    inside = [
        f.split("=", 1)[1] for f in flags if f.split("=", 1)[1].startswith("/etc")
    ]
    for path in inside:
        folder, _, name = path.rpartition("/")
        assert name in names if folder == "/etc/serving" else name == "ssl.config"
    for flag in flags:
        assert flag.partition("=")[0].removeprefix("--") in KNOWN_FLAGS


class _Status(BaseHTTPRequestHandler):
    state = "AVAILABLE"

    def do_GET(self):
        if self.path != "/v1/models/opt":
            self.send_error(404)
            return
        status = {"version": "1", "state": self.state, "status": {"error_code": "OK"}}
        body = json.dumps({"model_version_status": [status]}, indent=1).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.mark.parametrize(
    ("state", "name", "ready"),
    [("AVAILABLE", "opt", True), ("LOADING", "opt", False), ("AVAILABLE", "no", False)],
)
def test_the_readiness_probe_reads_the_state(state, name, ready):
    handler = type("Handler", (_Status,), {"state": state})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        command = serving.ready_command(name, server.server_port)
        ended = subprocess.run(command, timeout=10, capture_output=True)
    finally:
        server.shutdown()
        server.server_close()
    assert (ended.returncode == 0) == ready
    closed = subprocess.run(command, timeout=10, capture_output=True)
    assert closed.returncode != 0


@pytest.mark.parametrize("tls", ["server", "mutual"])
def test_the_tls_script_makes_an_ssl_config(tmp_path, tls):
    pem = {
        "tls.key": "-----BEGIN PRIVATE KEY-----\nMIIE+/=\n-----END PRIVATE KEY-----\n",
        "tls.crt": "-----BEGIN CERTIFICATE-----\r\nMIIC\r\n-----END CERTIFICATE-----",
        "ca.crt": "-----BEGIN CERTIFICATE-----\nMIID\n-----END CERTIFICATE-----\n",
    }
    for name, text in pem.items():
        (tmp_path / name).write_bytes(text.encode())
    script = tmp_path / "render.sh"
    script.write_text(serving.tls_script(DeployOptions(tls=tls)))
    out = tmp_path / "ssl.config"
    subprocess.run(["bash", script, tmp_path, out], check=True, timeout=10)
    parsed = text_format.Parse(out.read_text(), proto("SSLConfig")())
    assert parsed.server_key == pem["tls.key"]
    assert parsed.server_cert == pem["tls.crt"].replace("\r", "") + "\n"
    assert parsed.custom_ca == (pem["ca.crt"] if tls == "mutual" else "")
    assert parsed.client_verify == (tls == "mutual")
    assert out.stat().st_mode & 0o077 == 0
    missing = subprocess.run(
        ["bash", script, tmp_path / "no", out], capture_output=True
    )
    assert missing.returncode != 0


def test_the_readme_explains_every_flag(made_of, options, files):
    for flag in serving.server_flags(
        made_of, options, config_dir="/etc/serving", tls_dir="/etc/serving-tls"
    ):
        assert f"| `{flag}` | {flag.why} |" in files["README.md"]
    listed = [n for n in files if n != "README.md"]
    assert all(f"`{name}`" in files["README.md"] for name in listed)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "Opt 125m"}, "lower-case"),
        ({"name": "a" * 41}, "40"),
        ({"image": "a b"}, "image"),
        ({"storage": "/srv/models"}, "pvc://"),
        ({"stable": -1}, "version"),
        ({"stable": 2, "canary": 2}, "canary"),
        ({"replicas": 3, "max_replicas": 2}, "replicas"),
        ({"cpus": 0}, "cpus"),
        ({"tls": "yes"}, "tls"),
    ],
)
def test_wrong_options_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        DeployOptions(**wrong)


def _base_folder(tmp_path: Path, *versions: int) -> Path:
    for version in versions:
        path = tmp_path / "out" / str(version) / MANIFEST_PATH
        path.parent.mkdir(parents=True)
        path.write_text(MANIFESTS["xla"].to_json())
    return tmp_path / "out"


def test_the_command_moves_labels(tmp_path, capsys):
    out = _base_folder(tmp_path, 1, 2)
    assert main(["deploy", str(out), "--stable", "1", "--canary", "2"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(p.name for p in written) == sorted(os.listdir(out / "deploy"))
    assert 'key: "canary"' in (out / "deploy" / "models.config").read_text()
    assert main(["deploy", str(out)]) == 0  # the newest, alone
    text = (out / "deploy" / "models.config").read_text()
    assert "canary" not in text and "versions: 2" in text


def test_the_command_names_what_is_missing(tmp_path, capsys):
    out = _base_folder(tmp_path, 1)
    assert main(["deploy", str(out), "--canary", "2"]) == 1
    assert "2 is not an export" in capsys.readouterr().err
    assert main(["deploy", str(tmp_path)]) == 1
    assert "no numbered version" in capsys.readouterr().err
    assert not (out / "deploy").exists()


def test_a_batching_file_that_is_no_longer_used_goes(tmp_path):
    write_deployment(MANIFESTS["tf"], tmp_path)
    assert (tmp_path / serving.BATCHING_FILE).exists()
    write_deployment(MANIFESTS["tf"], tmp_path, DeployOptions(batching=False))
    assert not (tmp_path / serving.BATCHING_FILE).exists()
    assert not list(tmp_path.glob(".*"))


def test_the_workflow_fits_its_schema(data_dir):
    root = data_dir.parent.parent
    text = (root / ".github" / "workflows" / "export.yml").read_text()
    # "on" is a boolean in YAML 1.1, which PyYAML reads.
    workflow = pyyaml.load(text, Loader=pyyaml.BaseLoader)
    schema = json.loads((data_dir / "schemas" / "github-workflow.json").read_text())
    workflow["jobs"]["export"]["timeout-minutes"] = 120  # BaseLoader reads text only
    jsonschema.validate(workflow, schema)
    commands = [
        step["run"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    for command in (
        "doctor",
        "export",
        "verify",
        "--dry-run",
        "--baseline",
        "--against",
    ):
        assert any(command in line for line in commands)


def test_the_embedded_server_reads_the_same_files(tmp_path, options, made_of):
    config = pytest.importorskip("optserve.runtime.server.config")
    write_deployment(made_of, tmp_path, options)
    models = config.read_models_file(str(tmp_path / serving.MODELS_CONFIG))
    assert models[options.name].policy.versions == options.versions
    assert models[options.name].labels["stable"] == options.stable
    batching = tmp_path / serving.BATCHING_FILE
    if batching.exists():
        assert config.read_batching_file(str(batching)).pad_variable_length_inputs
