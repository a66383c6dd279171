"""The command ``optserve``: finds the command's module and reports its errors.

A command's module has ``configure(parser)`` and ``run(args) -> int`` (the exit code).
Only the chosen one is imported, so that a base install runs what it can.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .errors import OptserveError
from .log_lines import log_lines
from .memory import keep_freed_memory
from .printable import sentence

COMMANDS = {
    "export": (
        "optserve.export.commands.export",
        "make a SavedModel or TFLite file of a checkpoint",
    ),
    "deploy": (
        "optserve.export.commands.deploy",
        "write the files to serve an export with",
    ),
    "doctor": (
        "optserve.export.commands.doctor",
        "say what is missing on this machine",
    ),
    "verify": (
        "optserve.export.commands.verify",
        "compare an export with its checkpoint",
    ),
    "up": (
        "optserve.export.commands.up",
        "export a checkpoint, run it, and open a page to try it",
    ),
    "serve": ("optserve.runtime.commands.serve", "serve an export over gRPC"),
    "gateway": (
        "optserve.runtime.commands.gateway",
        "answer OpenAI's protocol over HTTP",
    ),
    "api-key": ("optserve.runtime.commands.api_key", "make a key for the gateway"),
    "evaluate": (
        "optserve.runtime.commands.evaluate",
        "measure how well a model predicts a text",
    ),
    "generate": ("optserve.runtime.commands.generate", "generate text from prompts"),
    "bench": (
        "optserve.runtime.commands.bench",
        "measure speed and memory against other engines",
    ),
    "chat": ("optserve.runtime.commands.chat", "talk with a model, turn by turn"),
    "describe": ("optserve.runtime.commands.describe", "say what a server serves"),
}

_GATEWAY_PACKAGES = ("jinja2", "prometheus_client", "pydantic", "starlette", "uvicorn")
_STDOUT = 1  # its file descriptor
_log = logging.getLogger("optserve.cli")
_SUMMARY = "OPT language models as served graphs: export, serve, generate."


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one sentence, like all others."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see {self.prog} --help")


class _UsageError(OptserveError):
    """The command line itself is wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 failed, 2 usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are ours to tell
    try:
        if sys.stdout is None:  # a descriptor that was closed before we began
            raise OptserveError(
                "standard output is closed: send it to /dev/null if nobody needs it"
            )
        if any("\0" in argument for argument in arguments):  # no shell lets one through
            raise _UsageError("an argument holds a NUL character: leave it out")
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("optserve: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
        return 141
    except Exception as error:
        if os.environ.get("OPTSERVE_TRACEBACK"):
            raise
        with log_lines(as_json="--json-log" in arguments):
            _log.error("%s", error_sentence(error))
        return 2 if isinstance(error, _UsageError) else 1


def _dispatch(arguments: list[str]) -> int:
    parser = _Parser(prog="optserve", description=_SUMMARY)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    module, chosen_parser = None, parser
    for name, (path, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(path)
            module.configure(sub)
            chosen_parser = sub
    args, unknown = parser.parse_known_args(arguments)
    assert module is not None  # argparse refused every other name
    if unknown:
        chosen_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if module.__name__.startswith(__package__ or ""):  # it sends or serves caches
        keep_freed_memory()
    with log_lines(as_json=getattr(args, "json_log", False)):
        return module.run(args)


def error_sentence(error: Exception) -> str:
    """One line for a person: our own errors as they are, others with their type."""
    return sentence(_described(error))


def _described(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = {
            "jax": "export",
            "flax": "export",
            "yaml": "export",
            "ai_edge_litert": "edge",
            **dict.fromkeys(_GATEWAY_PACKAGES, "gateway"),
        }.get(error.name.split(".")[0], "serve")
        return f"{error.name} is not installed: pip install 'optserve[{extra}]'"
    if type(error).__module__.startswith("optserve."):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)  # without the number
        return f"{error.filename}: {reason}" if error.filename else reason
    return (
        f"internal error, {type(error).__name__}: {error} "
        "(set OPTSERVE_TRACEBACK=1 for the traceback)"
    )


if __name__ == "__main__":
    sys.exit(main())
