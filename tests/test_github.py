"""``.github``: workflows fit a strict schema, and run commands that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from optserve.export.deploy.options import SERVER_IMAGE
from optserve.runtime.cli import COMMANDS

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: ``on`` is a word, a workflow's first one."""


_Loader.yaml_implicit_resolvers = {
    start: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":bool")]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for start in "tf":
    _Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile("true|false"), [start]
    )


def load(path: Path) -> dict:
    return yaml.load(path.read_text(), Loader=_Loader)


def commands(path: Path) -> list[str]:
    """What the steps run."""
    jobs = load(path)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_fit_the_schema(path, data_dir):
    schema = json.loads((data_dir / "schemas" / "github-workflow.json").read_text())
    jsonschema.validate(load(path), schema)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_there_is(path):
    text = "\n".join(commands(path))
    assert set(re.findall(r"^ *make ([\w-]+)", text, re.MULTILINE)) <= {*TARGETS}
    assert set(re.findall(r"^ *optserve ([\w-]+)", text, re.MULTILINE)) <= {*COMMANDS}


def test_the_schema_refuses_a_misspelt_field(data_dir):
    schema = json.loads((data_dir / "schemas" / "github-workflow.json").read_text())
    workflow = load(WORKFLOWS[0])
    job = next(iter(workflow["jobs"].values()))
    job["step"] = job.pop("steps")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(workflow, schema)


def test_the_suite_runs_on_every_python_that_is_supported():
    matrix = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["suite"]
    assert matrix["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]


def test_every_night_runs_targets_that_there_are():
    job = load(ROOT / ".github" / "workflows" / "nightly.yml")["jobs"]["long"]
    assert set(job["strategy"]["matrix"]["target"]) <= {*TARGETS}


def test_the_serving_suite_meets_the_image_that_deployments_name():
    jobs = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    assert jobs["serving"]["services"]["serving"]["image"] == SERVER_IMAGE


def test_an_export_is_checked_on_its_way():
    text = "\n".join(commands(ROOT / ".github" / "workflows" / "export.yml"))
    for step in ("doctor", "export", "verify", "--dry-run", "--baseline", "--against"):
        assert step in text


@pytest.mark.parametrize("name", ["bug", "feature", "config"])
def test_issue_forms_are_yaml(name):
    form = load(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert name == "config" or {"name", "description", "body"} <= form.keys()
