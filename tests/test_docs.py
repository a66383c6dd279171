"""The reference: every public name is in it, and says what it is."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from tests.make_docs import PACKAGES, make_docs

NAMES = [
    (package, name)
    for package in PACKAGES
    for name in getattr(import_module(package), "__all__", ())
]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=".".join)
def test_a_public_name_says_what_it_is(package, name):
    thing = getattr(import_module(package), name)
    assert thing.__doc__ and not thing.__doc__.startswith(f"{name}(")
    for method, value in vars(thing).items():
        if inspect.isfunction(value) and not method.startswith("_"):
            assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"


@pytest.mark.slow
def test_the_pages_hold_every_public_name(tmp_path):
    make_docs(tmp_path)
    for package, name in NAMES:
        page = tmp_path / f"{package.replace('.', '/')}.html"
        assert f'id="{name}"' in page.read_text(), (package, name)
