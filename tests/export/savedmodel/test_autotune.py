"""What is found out when a version is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.savedmodel import autotune, int8_matmul
from optserve.export.savedmodel.autotune import EXACT_INT8, NATIVE_BFLOAT16
from optserve.runtime.model_dir import read_manifest
from optserve.runtime.server.found_at_load import found_at_load

from tests.export.exports import Served, choosing, exported, int32

ROOT = Path(__file__).parents[3]


class Asking(tf.Module):
    """Nothing but the questions of an export of int8 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = autotune.questions(tf.int8, portable=False)

    @tf.function(input_signature=[])
    def answers(self):
        return {name: asked.read() for name, asked in self.questions.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of :class:`Asking`."""
    path = str(tmp_path_factory.mktemp("asking"))
    model = Asking()
    tf.saved_model.save(model, path, signatures={"answers": model.answers})
    return path


def test_only_what_the_weights_need_is_asked() -> None:
    def asked(weights: tf.DType, *, portable: bool = False) -> set[str]:
        return set(autotune.questions(weights, portable=portable))

    int8 = {EXACT_INT8} if int8_matmul.available() else set()
    assert asked(tf.int8) == {NATIVE_BFLOAT16} | int8
    assert asked(tf.int8, portable=True) == {NATIVE_BFLOAT16}
    assert asked(tf.bfloat16) == {NATIVE_BFLOAT16}
    assert asked(tf.float32) == asked(tf.float16) == set()


@pytest.mark.parametrize("answer", [False, True])
def test_the_answer_is_found_when_a_version_is_loaded(answer) -> None:
    resource = autotune.FoundAtLoad(lambda: tf.constant(answer), f"test_{answer}")
    resource._initialize()
    assert bool(tf.function(resource.read)()) == answer


def test_a_server_reads_the_answers_that_the_graph_uses(saved) -> None:
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        with session.graph.as_default():
            loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], saved)
        outputs = loaded.signature_def["answers"].outputs
        used = session.run({alias: info.name for alias, info in outputs.items()})
        assert list(found_at_load(session).values()) == [
            bool(used[name]) for name in (NATIVE_BFLOAT16, EXACT_INT8) if name in used
        ]


_LOAD = """
import sys
sys.modules.update(dict.fromkeys(["jax", "keras.src"]))  # seconds for nothing
import tensorflow as tf
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    tf.compat.v1.saved_model.loader.load(session, ["serve"], sys.argv[1])
"""


def test_any_servers_log_has_the_answers(saved) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, saved],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "optserve: " in line]
    assert len(said) == len(autotune.questions(tf.int8, portable=False))
    assert all(line.endswith((": yes", ": no")) for line in said)


def test_a_processor_that_cannot_do_what_is_pinned_refuses_the_version() -> None:
    asked = autotune.FoundAtLoad(lambda: tf.constant(False), "less", pinned=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="export it again without"):
        asked._initialize()


@pytest.mark.parametrize("found", [False, True])
def test_one_that_can_do_what_is_pinned_loads_it(found: bool) -> None:
    asked = autotune.FoundAtLoad(
        lambda: tf.constant(True), f"enough_{found}", pinned=found
    )
    asked._initialize()
    assert asked.read() is found


def test_an_export_for_this_processor_computes_the_same_in_a_smaller_graph() -> None:
    options = {"weights": "int8", "activations": "int8", "generate": (8,)}
    options["only"] = ("generate_8",)
    anywhere = exported("pre_ln", **options)
    here = exported("pre_ln", **options, tuned_for="this-processor")
    sizes = [(path / "saved_model.pb").stat().st_size for path in (here, anywhere)]
    assert sizes[0] < 0.9 * sizes[1]
    replies = []
    for path in (here, anywhere):
        model = Served(path)
        replies.append(
            model(
                "generate_8",
                input_ids=int32(5, 9, 7)[None],
                input_length=int32(3),
                cache=np.zeros((1, 0, *model.row_shape), np.float32),
                cache_length=int32(0),
                max_new_tokens=int32(8),
                **choosing(1),
            )
        )
    for name, reply in replies[0].items():
        np.testing.assert_array_equal(reply, replies[1][name])
    assert read_manifest(here).export_options["tuned_for"] == "this-processor"
