"""Who judges: never the framework alone that may have computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from optserve.export.verify.plan import Row, TestCase
from optserve.export.verify.source_model import judges_of
from optserve.runtime.contract import Manifest

from tests.export.exports import SMALLEST

MANIFEST = Manifest(
    config=SMALLEST.to_dict(),
    framework="tf",
    compiler="none",
    weights_dtype="int8",
    cache_dtype="float32",
    signatures=[],
)


def judges(
    framework: str, compiler: str, name: str, rows: int, size: int, **more: Any
) -> set[str]:
    more |= {"framework": framework, "compiler": compiler}
    manifest = dataclasses.replace(MANIFEST, **more)
    case = TestCase(name, (Row(0, 0, size),) * rows, size)
    return set(judges_of(case, manifest))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (3, 1)])
def test_tensorflow_s_ops_are_judged_by_jax(sizes):
    assert judges("tf", "none", "generate_8", *sizes) == {"jax"}
    assert judges("tf", "xla", "decode", *sizes) == {"jax"}


def test_programs_of_jax_are_judged_by_tensorflow():
    assert judges("tf", "xla", "generate_8", 1, 1) == {"tf"}
    for name in ("decode", "generate_8"):
        assert judges("jax", "xla", name, 1, 1) == {"tf"}


@pytest.mark.parametrize("sizes", [(1, 5), (3, 1)])
def test_what_either_may_have_computed_is_judged_by_both(sizes):
    for name in ("decode", "generate_8"):
        assert judges("jax", "xla", name, *sizes) == {"tf", "jax"}


@pytest.mark.parametrize(
    "unmixed",
    [
        {"export_options": {"portable": True}},
        {"weights_dtype": "float16"},
        {"weights_dtype": "int4"},
    ],
)
def test_programs_alone_are_judged_by_tensorflow_alone(unmixed):
    assert judges("jax", "xla", "generate_8", 3, 5, **unmixed) == {"tf"}
