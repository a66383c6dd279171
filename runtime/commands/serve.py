"""``optserve serve``: the embedded server in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import InvalidRequest
from ..model_dir import version_folders
from ..printable import json_text, sentence
from .argument_types import Group, number, whole
from .listening_arguments import (
    add_host,
    add_json_log,
    add_port,
    allow_many_connections,
)

if TYPE_CHECKING:
    from ..server import EmbeddedServer

_LOOK_SECONDS = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "path", nargs="?", metavar="OUT", help="folder of the model's numbered versions"
    )
    _add_models(parser.add_argument_group("models"))
    _add_address(parser.add_argument_group("address"))
    _add_execution(parser.add_argument_group("execution"))
    add = parser.add_argument
    add("--json-ready", action="store_true", help="print the ready line as JSON")
    add(
        "--until-stdin-ends",
        action="store_true",
        help="end with the program that holds standard input's other end, too",
    )
    add_json_log(parser)


def _add_models(group: Group) -> None:
    """What is served, and when that changes."""
    add = group.add_argument
    add("--name", default="opt", help="the model's name in requests (default opt)")
    add(
        "--versions",
        default="latest",
        metavar="WHICH",
        help="all, latest:N, or numbers separated by commas (default latest)",
    )
    add(
        "--model-config-file",
        metavar="FILE",
        help="serve several models (ModelServerConfig)",
    )
    add(
        "--poll-seconds",
        type=number(0.01, 1e6),
        default=2.0,
        metavar="S",
        help="seconds between looks for new versions (default 2)",
    )
    add("--wait", action="store_true", help="wait for a model that is not there yet")
    add(
        "--allow-reload",
        action="store_true",
        help="let callers change what is served (HandleReloadConfigRequest); at "
        "loopback, a Unix socket, or with client certificates only",
    )


def _add_address(group: Group) -> None:
    add_port(group, 8500)
    add_host(group)
    add = group.add_argument
    add("--socket", metavar="PATH", help="listen at a Unix socket instead of a port")
    add("--ssl-config-file", metavar="FILE", help="encrypt the port (SSLConfig)")


def _add_execution(group: Group) -> None:
    """How requests run, and how their replies are written."""
    add = group.add_argument
    add("--enable-batching", action="store_true", help="batch concurrent requests")
    add(
        "--batching-parameters-file",
        metavar="FILE",
        help="batching's sizes and times (BatchingParameters)",
    )
    add(
        "--tensor-content",
        action="store_true",
        help="reply in tensor_content instead of typed fields",
    )
    threads = whole(0, 1024)
    add(
        "--intra-op-threads",
        type=threads,
        default=0,
        metavar="N",
        help="threads of an operation (default 0: one per core)",
    )
    add(
        "--inter-op-threads",
        type=threads,
        default=1,
        metavar="N",
        help="operations at a time (default 1)",
    )
    add(
        "--xla-cpu-compilation-enabled",
        type=_boolean,
        default=True,
        metavar="BOOL",
        help="false refuses models that XLA compiles, as TensorFlow Serving does by "
        "default (default true)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (exit code 0) or Ctrl-C (130, by ``cli.main``)."""
    logging.getLogger("optserve.server").setLevel(logging.INFO)
    _use_compiled(args.path)
    options = _options(args)
    with _ended_by_signals() as ended:
        if args.until_stdin_ends:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        from ..server import EmbeddedServer

        allow_many_connections()
        before = set(threading.enumerate())
        try:
            with EmbeddedServer(**options) as server:
                if not ended:
                    print(_ready_line(server, as_json=args.json_ready), flush=True)
                while not ended and not server.wait(_LOOK_SECONDS):
                    pass
            if ended:
                _raise_for(ended[0])
        except (SystemExit, KeyboardInterrupt):
            _leave_if_loading(ended, set(threading.enumerate()) - before)
            raise
    return 0


def _use_compiled(base: str | None) -> None:
    """Before TensorFlow is imported, which reads its flags once for all models."""
    from ..server.compiled import use_compiled

    for folder in [] if base is None else version_folders(base).values():
        if use_compiled(folder):  # the newest that has something
            return


def _end_with_stdin() -> None:
    with suppress(OSError):
        while os.read(0, 1 << 16):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_if_loading(ended: list[int], threads: set[threading.Thread]) -> None:
    """End the process at once where a version is still loading.

    TensorFlow can't be interrupted in it, and takes the process down with it if the
    interpreter ends meanwhile.
    """
    from ..server.manager import THREAD_NAME

    if any(thread.name == THREAD_NAME for thread in threads):
        sys.stdout.flush()
        if signal.SIGTERM in ended:
            os._exit(0)
        print("optserve: interrupted", file=sys.stderr, flush=True)
        os._exit(130)


@contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C leave the block, which stops the server gracefully.

    They are also noted in the list: Python drops an exception that is raised while a
    callback of its garbage collector runs, and JAX, which TensorFlow imports, has one.
    """
    ended: list[int] = []

    def end(number: int, _frame: object) -> None:
        ended.append(number)
        _raise_for(number)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)  # a shell's background jobs ignore it
    report = sys.unraisablehook

    def report_others(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, SystemExit | KeyboardInterrupt):
            report(dropped)

    before = {number: signal.signal(number, end) for number in numbers}
    sys.unraisablehook = report_others
    try:
        yield ended
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_for(number: int) -> NoReturn:
    if number == signal.SIGTERM:
        raise SystemExit(0)
    raise KeyboardInterrupt


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``EmbeddedServer``; raises ``InvalidRequest``."""
    from ..server import BatchingParameters, SessionOptions, VersionPolicy

    if (args.path is None) == (args.model_config_file is None):
        raise InvalidRequest("give either OUT or --model-config-file")
    if args.batching_parameters_file and not args.enable_batching:
        raise InvalidRequest("--batching-parameters-file needs --enable-batching")
    if args.path is not None and not args.wait and not os.path.isdir(args.path):
        raise InvalidRequest(
            f"there is no folder {args.path}: give the folder that holds an export's "
            "numbered versions, or --wait for it"
        )
    options: dict[str, Any] = {
        "base_path": args.path,
        "name": args.name,
        "host": args.host,
        "port": args.port,
        "socket": args.socket,
        "tensor_content": args.tensor_content,
        "poll_seconds": args.poll_seconds,
        "wait_for_model": args.wait,
        "allow_reload": args.allow_reload,
        "session": SessionOptions(
            args.intra_op_threads,
            args.inter_op_threads,
            args.xla_cpu_compilation_enabled,
        ),
    }
    try:
        options["versions"] = VersionPolicy.parse(args.versions)
        options |= _from_files(args)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    if args.enable_batching:
        options.setdefault("batching", BatchingParameters())
    return options


def _from_files(args: argparse.Namespace) -> dict[str, Any]:
    files = (
        args.model_config_file,
        args.batching_parameters_file,
        args.ssl_config_file,
    )
    if not any(files):
        return {}
    from ...models.quiet import import_tensorflow

    import_tensorflow()  # the official messages' package imports it
    from ..server import config_files

    readers = {
        "models": config_files.read_models_file,
        "batching": config_files.read_batching_file,
        "tls": config_files.read_tls_file,
    }
    return {
        name: read(file)
        for (name, read), file in zip(readers.items(), files, strict=True)
        if file
    }


def _ready_line(server: EmbeddedServer, *, as_json: bool) -> str:
    models = server.models()
    if as_json:
        return json_text({"target": server.target, "models": models})
    parts = [
        f"{name} version {', '.join(map(str, model['versions']))}: "
        f"{' '.join(model['signatures'])}"
        for name, model in models.items()
    ]
    return sentence(f"ready at {server.target} · " + " · ".join(parts))


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text == "true"
