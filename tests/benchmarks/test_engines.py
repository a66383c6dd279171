"""Each engine runs with its own interpreter and weighs what it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .engines import OURS, PEERS, Setup, engine


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """As large as 1000 parameters."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(4000))
    return folder


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup(tmp_path, peer_python="peer", litert_python="litert")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_runs_with_the_interpreter_that_has_it(name, setup, checkpoint):
    python, *_, which, _, _, threads = engine(name, setup, checkpoint).command
    assert python == ("litert" if name.startswith("litert-torch") else "peer")
    assert (which, threads) == (name, "2")


def test_the_peers_script_knows_every_peer():
    """Read, not imported: that needs the peers."""
    tree = ast.parse(Path(__file__).with_name("peers.py").read_text())
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ENGINES"
    )
    assert isinstance(table, ast.Dict)
    assert [ast.literal_eval(key) for key in table.keys if key] == list(PEERS)


def test_weights_are_those_of_the_model_that_runs(setup, checkpoint):
    sizes = {
        "optserve-int8": 1000,
        "optserve-litert-float32": 4000,
        "openvino-int4": 500,
        "litert-torch-opt-int8": 1000,
        "litert-torch-smollm-135m-int8": 134_515_008,
    }
    for name, size in sizes.items():
        assert engine(name, setup, checkpoint).weight_bytes == size


def test_stock_servers_get_the_compilers_flag_only_with_a_compiled_export(
    setup, checkpoint
):
    stock = Setup(setup.work, serving_binary="/bin/server")
    flagged = {
        name
        for name, (_, mode) in OURS.items()
        if mode == "grpc"
        and "--xla_cpu_compilation_enabled=true"
        in (engine(name, stock, checkpoint).server or [])
    }
    compiled = {name for name in OURS if "-xla-" in name or "-jax-" in name}
    assert flagged == compiled
