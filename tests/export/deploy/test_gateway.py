"""The gateway's files: strict schemas, and arguments that the command takes."""

from __future__ import annotations

import argparse
import json
import re

import jsonschema
import pytest
import yaml as pyyaml
from deployments import MANIFESTS, OPTIONS
from optserve.export.deploy import deployment_files, write_deployment
from optserve.export.deploy.gateway import command
from optserve.runtime.commands import gateway
from optserve.runtime.gateway.metrics import Metrics
from optserve.runtime.gateway.tracing import GenerationSpan
from optserve.runtime.results import Generation
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def files():
    return deployment_files(MANIFESTS["tf"], OPTIONS["gateway"])


def test_objects_fit_the_schema_and_each_other(files, data_dir):
    schema = json.loads((data_dir / "schemas" / "kubernetes.json").read_text())
    objects = {}
    for document in pyyaml.safe_load_all(files["gateway.yaml"]):
        kind = document["kind"]
        jsonschema.validate(document, {**schema, "$ref": f"#/$defs/{kind}"})
        objects[kind] = document
    template = objects["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels
    (server, *_) = pyyaml.safe_load_all(files["kubernetes.yaml"])
    assert server["metadata"]["labels"] != labels  # neither takes the other's calls
    volumes = {v["name"] for v in template["spec"]["volumes"]}
    (container,) = template["spec"]["containers"]
    assert {m["name"] for m in container["volumeMounts"]} <= volumes
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert scaled == objects["Deployment"]["metadata"]["name"]


@pytest.mark.parametrize("name", ["defaults", "tls", "mutual", "gateway"])
def test_the_command_takes_its_arguments(name):
    parser = argparse.ArgumentParser()
    gateway.configure(parser)
    words = command(OPTIONS[name], "dns:///opt:8500")
    args = parser.parse_args(words[1:])
    assert words[0] == "gateway" and args.target == ["dns:///opt:8500"]
    assert bool(args.tls_ca) == (OPTIONS[name].tls != "none")
    assert bool(args.tls_key) == (OPTIONS[name].tls == "mutual")


def test_kserves_gateway_calls_the_predictors_pods(files, data_dir):
    schema = json.loads((data_dir / "schemas" / "kubernetes.json").read_text())
    predictor, *rest = pyyaml.safe_load_all(files["kserve.yaml"])
    for document in rest:
        kind = document["kind"]
        jsonschema.validate(document, {**schema, "$ref": f"#/$defs/{kind}"})
    direct, deployment, service, _ = rest
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    target = container["args"][container["args"].index("--target") + 1]
    (port,) = direct["spec"]["ports"]
    assert target == f"dns:///{direct['metadata']['name']}:{port['port']}"
    (served,) = predictor["spec"]["predictor"]["model"]["ports"]
    assert served["containerPort"] == port["targetPort"]
    name = direct["spec"]["selector"]["serving.kserve.io/inferenceservice"]
    assert name == predictor["metadata"]["name"]
    assert direct["metadata"]["name"] != service["metadata"]["name"]


def test_every_metric_of_the_dashboard_is_one_of_the_gateway(files):
    document = json.loads(files["grafana.json"])
    targets = [t for panel in document["panels"] for t in panel["targets"]]
    asked = {name for t in targets for name in re.findall(r"vllm:\w+", t["expr"])}
    _, model = document["templating"]["list"]
    asked |= set(re.findall(r"vllm:\w+", model["query"]["query"]))
    metrics = Metrics(["opt"], lambda _: 0, lambda _: 0, lambda _: 0)
    clock = metrics.clock("opt", GenerationSpan())
    clock.started()
    clock.first_token()
    clock.ended(Generation("", [1, 2], [], "length", 3, 1))
    families = text_string_to_metric_families(metrics.text().decode())
    there = {sample.name for family in families for sample in family.samples}
    assert len(asked) >= 12
    assert asked <= there
    places = [tuple(panel["gridPos"].values()) for panel in document["panels"]]
    assert len(set(places)) == len(places)


def test_without_an_image_there_is_none(tmp_path):
    manifest = MANIFESTS["tf"]
    names = {p.name for p in write_deployment(manifest, tmp_path, OPTIONS["gateway"])}
    assert {"gateway.yaml", "grafana.json"} <= names
    assert (tmp_path / "gateway.yaml").exists()
    write_deployment(manifest, tmp_path, OPTIONS["defaults"])
    assert not (tmp_path / "gateway.yaml").exists()
    assert not (tmp_path / "grafana.json").exists()
    compose = pyyaml.safe_load((tmp_path / "compose.yaml").read_text())
    assert set(compose["services"]) == {"serving"}
