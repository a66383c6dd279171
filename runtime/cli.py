"""The command ``optserve``: finds the command's module and reports its errors.

A command's module has ``configure(parser)`` and ``run(args) -> int`` (the exit code).
Only the chosen one is imported, so that a base install runs what it can.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__
from .memory import keep_freed_memory

COMMANDS = {
    "export": ("optserve.export.commands.export", "checkpoint to SavedModel or TFLite"),
    "deploy": ("optserve.export.commands.deploy", "files to serve an export with"),
    "doctor": ("optserve.export.commands.doctor", "what is missing here"),
    "verify": ("optserve.export.commands.verify", "files and numbers of an export"),
    "serve": ("optserve.runtime.commands.serve", "serve an export over gRPC"),
    "generate": ("optserve.runtime.commands.generate", "continue prompts"),
    "bench": ("optserve.runtime.commands.bench", "measure against the peers"),
    "chat": ("optserve.runtime.commands.chat", "talk with a model, turn by turn"),
    "describe": ("optserve.runtime.commands.describe", "what a served model is"),
}

_SUMMARY = "OPT language models as served graphs: export, serve, generate."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 failed, 2 usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("optserve: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("OPTSERVE_TRACEBACK"):
            raise
        print(f"optserve: {error_sentence(error)}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="optserve", description=_SUMMARY)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    module = None
    for name, (path, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(path)
            module.configure(sub)
    args = parser.parse_args(arguments)
    assert module is not None  # argparse refused every other name
    if module.__name__.startswith(__package__ or ""):  # it sends or serves caches
        keep_freed_memory()
    return module.run(args)


def error_sentence(error: Exception) -> str:
    """One line for a person: our own errors as they are, others with their type."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = {
            "jax": "export",
            "flax": "export",
            "yaml": "export",
            "ai_edge_litert": "edge",
        }.get(error.name.split(".")[0], "serve")
        return f"{error.name} is not installed: pip install 'optserve[{extra}]'"
    if type(error).__module__.startswith("optserve."):
        return text
    if isinstance(error, OSError):
        reason = error.strerror or text  # without the number
        return f"{error.filename}: {reason}" if error.filename else reason
    return (
        f"internal error, {type(error).__name__}: {text} "
        "(set OPTSERVE_TRACEBACK=1 for the traceback)"
    )


if __name__ == "__main__":
    sys.exit(main())
