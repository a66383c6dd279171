"""TensorFlow's own lines are dropped, anything else is passed on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from optserve.models.quiet import _stderr_filtered

LINES = [
    (b"WARNING: All log messages before absl::InitializeLog() is called", False),
    (b"I0000 00:00:1795363908.485875   24083 port.cc:153] oneDNN", False),
    (b"To enable the following instructions: AVX2", False),
    (b"Illegal instruction", True),
    (b"E: something else", True),
]


@pytest.mark.parametrize(("line", "kept"), LINES)
def test_lines(line, kept, capfd):
    with _stderr_filtered():
        os.write(2, line + b"\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == (line.decode() + "\n") * kept + "after\n"


def test_what_was_written_before_an_exception_is_not_lost(capfd):
    with pytest.raises(ImportError), _stderr_filtered():
        os.write(2, b"a clue\n")
        raise ImportError
    assert capfd.readouterr().err == "a clue\n"


def test_keras_and_jax_are_not_imported_before_they_are_used():
    program = """
import gc, sys
from optserve.models.quiet import import_tensorflow
import_tensorflow()
print(sorted({"jax", "keras", "keras.src"} & set(sys.modules)), gc.isenabled())
import jax, tensorflow
print(tensorflow.keras.layers.Dense(3)(tensorflow.ones([1, 2])).shape)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True", "(1, 3)"]
