"""What a production process installs: how large it is, and that it needs no more.

Needs a package index, like any installation.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[1]
LIMIT = 160e6  # bytes
SIZES = """
import json
from importlib.metadata import distributions
sizes = {
    d.name: sum(p.stat().st_size for f in d.files or () if (p := f.locate()).is_file())
    for d in distributions()
}
print(json.dumps({n: s for n, s in sizes.items() if n not in ("pip", "setuptools")}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The folder of programs of an environment with ``pip install .`` in it."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"
    # A copy, since building leaves files in the folder that is built.
    skipped = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    for name in ("models", "export", "runtime"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", source]
    pins = REPOSITORY / "tests" / "constraints.txt"
    subprocess.run([*install, "-c", pins], check=True)
    return programs


def test_the_base_install_is_small(base):
    run = [base / "python", "-c", SIZES]
    out = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    sizes = json.loads(out)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:8.1f} MB  in all")
    assert not {"tensorflow", "jax"} & sizes.keys()
    assert sum(sizes.values()) <= LIMIT


def test_the_base_install_generates_text_from_a_server(base, tmp_path):
    pytest.importorskip("tensorflow")
    from tests.export.exports import exported_tiny

    out = exported_tiny().parent
    serve = [sys.executable, "-m", "optserve.runtime.cli", "serve", out]
    with subprocess.Popen(
        [*serve, "--port", "0", "--json-ready"], stdout=subprocess.PIPE
    ) as server:
        try:
            target = json.loads(server.stdout.readline())["target"]
            ask = [base / "optserve", "generate", "--target", target, "--json"]
            done = subprocess.run(
                [*ask, "--max-new-tokens", "20", "ROMEO:"],
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
            )
        finally:
            server.kill()
    record = json.loads(done.stdout)
    assert len(record["tokens"]) == 20 and record["text"]
