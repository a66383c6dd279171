"""Every cell of the conformance table's TensorFlow columns is a test."""

from __future__ import annotations

import pytest

from . import conformance

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module", autouse=True)
def nothing_stays():
    yield
    conformance.release()


@pytest.mark.parametrize(("check", "kind"), conformance.cells("tf"))
def test_cell(check, kind, base, tmp_path):
    conformance.run(check, kind, base, tmp_path)
