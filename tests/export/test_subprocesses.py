"""Functions in processes of their own: results, errors, and nothing left behind."""

from __future__ import annotations

import os
import types

import pytest
from optserve.export import subprocesses
from optserve.export.errors import ExportError
from optserve.export.subprocesses import (
    Subprocess,
    SubprocessFailed,
    call_in_subprocess,
)


def function_of_another_process(name: str):
    """A stand-in for a function of a module: only where it is matters here."""
    function = types.FunctionType(compile("None", "", "eval"), {})
    module, function.__qualname__ = name.split(":")
    function.__module__ = module
    return function


def test_a_result_comes_back():
    dumps = function_of_another_process("json:dumps")
    assert call_in_subprocess(dumps, obj=[1, None]) == "[1, null]"
    assert call_in_subprocess(subprocesses.peak_memory) > 1e6


def test_what_is_printed_there_is_no_part_of_the_result(capfd):
    system = function_of_another_process("os:system")
    assert call_in_subprocess(system, command="echo noise") == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("", "noise\n")
    call_in_subprocess(system, command="echo noise", quiet=True)
    assert capfd.readouterr() == ("", "")


def test_its_environment():
    getenv = function_of_another_process("os:getenv")
    assert call_in_subprocess(getenv, environment={"A_B": "c"}, key="A_B") == "c"
    assert call_in_subprocess(getenv, key="PATH") == os.environ["PATH"]


def test_it_prepares_itself_and_waits():
    prepare = function_of_another_process("gc:disable")
    with Subprocess(prepare) as process:
        assert process.call(function_of_another_process("gc:isenabled")) is False
    impossible = function_of_another_process("json:no_such_function")
    failing = pytest.raises(SubprocessFailed, match="no_such_function")
    with Subprocess(impossible) as process, failing:
        process.call(subprocesses.peak_memory)


def test_one_that_is_not_needed_ends(capfd):
    with Subprocess() as process:
        pid = process._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert capfd.readouterr() == ("", "")


def test_an_error_is_a_sentence():
    listdir = function_of_another_process("os:listdir")
    with pytest.raises(SubprocessFailed, match="/nowhere: No such file") as failed:
        call_in_subprocess(listdir, path="/nowhere")
    assert isinstance(failed.value, ExportError)


def test_a_process_that_dies_is_explained():
    abort = function_of_another_process("os:abort")
    with pytest.raises(SubprocessFailed, match="killed by signal 6"):
        call_in_subprocess(abort, quiet=True)
    end = function_of_another_process("os:_exit")
    with pytest.raises(SubprocessFailed, match="ended with 3"):
        call_in_subprocess(end, status=3)
    missing = function_of_another_process("json:no_such_function")
    with pytest.raises(SubprocessFailed, match="no_such_function"):
        call_in_subprocess(missing)
