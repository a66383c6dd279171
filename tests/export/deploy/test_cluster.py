"""Kubernetes, KServe, compose and workflow files: strict schemas, and references."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml as pyyaml
from deployments import KNOWN_FLAGS, MANIFESTS
from jsonschema.validators import validator_for
from optserve.export.deploy import DeployOptions, deployment_files


@pytest.fixture(scope="module")
def validate(data_dir: Path) -> Callable[..., None]:
    """Raises unless a document fits; the schemas themselves are checked once."""
    folder = data_dir / "schemas"
    schemas = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("kubernetes", "compose")
    }
    validators = {name: validator_for(schema) for name, schema in schemas.items()}
    for name, validator in validators.items():
        validator.check_schema(schemas[name])

    def validate(name: str, document: dict, **reference: str) -> None:
        validators[name]({**schemas[name], **reference}).validate(document)

    return validate


@pytest.mark.parametrize("name", ["kubernetes", "kserve"])
def test_cluster_objects_fit_the_schema(name, files, validate):
    for document in pyyaml.safe_load_all(files[f"{name}.yaml"]):
        kind = {"$ref": f"#/$defs/{document['kind']}"}
        validate("kubernetes", document, **kind)


def test_compose_fits_the_schema(files, validate):
    validate("compose", pyyaml.safe_load(files["compose.yaml"]))


def test_the_schema_refuses_a_misspelt_field(validate):
    files = deployment_files(MANIFESTS["tf"], DeployOptions())
    documents = list(pyyaml.safe_load_all(files["kubernetes.yaml"]))
    deployment = next(d for d in documents if d["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(jsonschema.ValidationError):
        validate("kubernetes", deployment)


def test_cluster_objects_refer_to_each_other(options, files):
    objects = {d["kind"]: d for d in pyyaml.safe_load_all(files["kubernetes.yaml"])}
    template = objects["Deployment"]["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    selector = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    budget = objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert budget.items() <= labels.items()
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == objects["Deployment"]["metadata"]["name"]
    assert "replicas" not in objects["Deployment"]["spec"]
    assert objects["Service"]["spec"]["clusterIP"] == "None"

    volumes = {v["name"]: v for v in pod["volumes"]}
    ports = {p["name"] for c in pod["containers"] for p in c["ports"]}
    assert {p["targetPort"] for p in objects["Service"]["spec"]["ports"]} <= ports
    for container in pod["containers"] + pod.get("initContainers", []):
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted <= volumes.keys()
    assert (
        volumes["config"]["configMap"]["name"]
        == objects["ConfigMap"]["metadata"]["name"]
    )
    assert ("models" in volumes) == options.storage_uri.startswith("pvc://")
    _flags_point_at_files(pod["containers"][0]["args"], objects["ConfigMap"]["data"])


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


def test_what_xla_compiles_is_kept_where_there_is_any(made_of, files):
    service = pyyaml.safe_load(files["compose.yaml"])["services"]["serving"]
    documents = pyyaml.safe_load_all(files["kubernetes.yaml"])
    (deployment,) = (d for d in documents if d["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {v["name"]: v["value"] for v in container["env"]}
    assert env == service["environment"]
    assert env.pop("TF_ENABLE_ONEDNN_OPTS") == "1"
    if made_of.compiler == "none":
        assert not env
        return
    flag, _, folder = env["TF_XLA_FLAGS"].partition("=")
    assert flag == "--tf_xla_persistent_cache_directory"
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    assert not mounts[folder].get("readOnly")
    assert any(v.endswith(f":{folder}") for v in service["volumes"])
