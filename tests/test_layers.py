"""What may import what: models < runtime < export, and no circles."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp
import pytest

PACKAGES = ("optserve.models", "optserve.runtime", "optserve.export")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Who imports whom, inside functions and for types alone too."""
    return grimp.build_graph(
        *PACKAGES,
        include_external_packages=True,
        cache_dir=None,
    )


def test_packages_import_downwards_only(imports):
    """Exports use the runtime and the models, the runtime uses the models."""
    assert imports.find_illegal_dependencies_for_layers(PACKAGES[::-1]) == set()


def test_no_module_imports_itself_through_others(imports):
    graph = {
        module: imports.find_modules_directly_imported_by(module)
        for module in imports.modules
        if module.startswith("optserve.")
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_the_decode_loop_knows_no_transport(imports):
    for library in ("grpc", "tensorflow", "jax", "ai_edge_litert"):
        chains = imports.find_shortest_chains(
            "optserve.runtime.decoding", library, as_packages=True
        )
        assert chains == set()


@pytest.mark.parametrize("library", ["tensorflow", "jax", "flax"])
def test_the_client_imports_no_framework(imports, library):
    """The embedded server and the transport that runs in process aside."""
    allowed = ("optserve.runtime.server.", "optserve.runtime.transports.local")
    users = imports.find_modules_that_directly_import(library)
    runtime = {user for user in users if user.startswith("optserve.runtime.")}
    assert {user for user in runtime if not user.startswith(allowed)} == set()


def test_the_models_need_no_network_protocol(imports):
    for library in ("grpc", "google"):
        chains = imports.find_shortest_chains(
            "optserve.models", library, as_packages=True
        )
        assert chains == set()
