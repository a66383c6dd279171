"""The server's own files: read by its protos, its flags, its probe, our server."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from deployments import KNOWN_FLAGS, MANIFESTS
from google.protobuf import text_format
from optserve.export.deploy import (
    DeployOptions,
    deployment_files,
    serving,
    write_deployment,
)
from protos import proto


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
    assert on == {"tf": True, "xla": True, "jax": True}


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


def test_the_embedded_server_reads_the_same_files(tmp_path, options, made_of):
    config_files = pytest.importorskip("optserve.runtime.server.config_files")
    write_deployment(made_of, tmp_path, options)
    models = config_files.read_models_file(str(tmp_path / serving.MODELS_CONFIG))
    assert models[options.name].policy.versions == options.versions
    assert models[options.name].labels["stable"] == options.stable
    batching = tmp_path / serving.BATCHING_FILE
    if batching.exists():
        assert config_files.read_batching_file(str(batching)).pad_variable_length_inputs
