"""Deployment files for every kind of export and set of options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from optserve.export.deploy import DeployOptions, deployment_files
from optserve.runtime.contract import Manifest

sys.path.insert(0, str(Path(__file__).parent))
from deployments import MANIFESTS, OPTIONS


@pytest.fixture(params=OPTIONS)
def options(request) -> DeployOptions:
    return OPTIONS[request.param]


@pytest.fixture(params=MANIFESTS)
def made_of(request) -> Manifest:
    return MANIFESTS[request.param]


@pytest.fixture
def files(made_of: Manifest, options: DeployOptions) -> dict[str, str]:
    return deployment_files(made_of, options)
