"""A batch of prompts to JSON lines, resumed where it was interrupted.

A line of output is written whole or not at all, and only results count as done: what
failed is tried again by the next run.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..client import Client
from ..errors import InvalidRequest
from ..options import GenerationOptions
from ..results import Generation
from .arguments import opened_client

_LONGEST_LINE = 64 << 20


@dataclass
class Item:
    """One prompt of a batch; ``rest`` are its line's other fields, passed on."""

    id: str | int
    prompt: Any = None
    error: str = ""
    rest: dict[str, Any] = field(default_factory=dict)


class Output:
    """JSON lines to a file (appended) or to standard output."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file = None if path is None else os.open(path, _APPEND, 0o644)
        self.done: set[str | int] = set()
        if path is not None:
            self.done = _finished(Path(path))
        self.written = self.failed = 0

    def write(self, record: dict[str, Any]) -> None:
        """Add one line."""
        text = json.dumps(record, ensure_ascii=False) + "\n"
        line = text.encode(errors="backslashreplace")  # half a surrogate pair: \udc80
        if self._file is None:
            sys.stdout.write(line.decode())
            sys.stdout.flush()
        else:
            self._append(self._file, line)
        self.written += 1
        self.failed += "error" in record

    def _append(self, file: int, line: bytes) -> None:
        try:
            written = os.write(file, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def run_batch(
    args: argparse.Namespace, options: GenerationOptions, prompts: list[str]
) -> int:
    """Generate for the prompts, or for the batch; 1 where some failed."""
    given = nullcontext(Item(i, prompt) for i, prompt in enumerate(prompts))
    with (
        opened_items(args.jsonl) if args.jsonl else given as items,
        closing(Output(args.output)) as output,
        opened_client(args) as client,
        _progress(args) as progress,
    ):
        todo = (item for item in items if item.id not in output.done)
        for record in results(client, todo, options):
            output.write(record)
            progress.update(output)
    if not args.quiet:
        skipped = f", {len(output.done)} already there" if output.done else ""
        failed = f", {output.failed} failed" if output.failed else ""
        print(
            f"{output.written - output.failed} done{failed}{skipped}", file=sys.stderr
        )
    return 1 if output.failed else 0


def results(
    client: Client, items: Iterable[Item], options: GenerationOptions
) -> Iterator[dict[str, Any]]:
    """A record for each item, as they end; a bad one fails alone."""
    under_way: dict[int, Item] = {}
    failed: list[dict[str, Any]] = []
    read = itertools.count()

    def prompts() -> Iterator[list[int]]:
        for item in items:
            try:
                if item.error:
                    raise InvalidRequest(item.error)
                ids = client.encode(item.prompt, options)
            except InvalidRequest as error:
                failed.append({"id": item.id, "error": str(error), **item.rest})
                continue
            under_way[next(read)] = item
            yield ids

    for result in client.generate_many(prompts(), **vars(options)):
        yield from failed
        failed.clear()
        yield _record(under_way.pop(result.index), result)
    yield from failed


@contextmanager
def opened_items(path: str) -> Iterator[Iterator[Item]]:
    """The items of a JSONL file, ``-`` for standard input; ids default to the line.

    Raises:
        OSError: the file can't be read.
    """
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        yield _items(file)


def _items(file: IO[bytes]) -> Iterator[Item]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if line.strip():
            yield _item(line, number)


def _item(line: bytes, number: int) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Item(number, error=f"line {number} is not JSON: {error}")
    if isinstance(record, str):
        return Item(number, record)
    if not isinstance(record, dict) or "prompt" not in record:
        return Item(number, error=f'line {number} is no object with a "prompt"')
    identity = record.pop("id", number)
    prompt = record.pop("prompt")
    if not isinstance(identity, str | int):
        return Item(number, error=f"line {number}: an id is a text or a whole number")
    if not isinstance(prompt, str | list):
        text = f"line {number}: a prompt is a text or a list of token ids"
        return Item(identity, error=text, rest=record)
    return Item(identity, prompt, rest=record)


def _record(item: Item, result: Generation) -> dict[str, Any]:
    prompt = {"prompt": item.prompt} if isinstance(item.prompt, str) else {}
    return {"id": item.id, **item.rest, **prompt, **result.to_dict()}


def _finished(path: Path) -> set[str | int]:
    """Ids that have a result; a line cut off by an interruption is removed."""
    done: set[str | int] = set()
    if not path.is_file():
        return done
    with open(path, "rb+") as file:
        whole = 0
        while line := file.readline():
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            try:
                record = json.loads(line)
                if "error" not in record:
                    done.add(record["id"])
            except (ValueError, TypeError, KeyError):
                raise InvalidRequest(
                    f"{path} holds a line that is no result of this command: give "
                    "another --output"
                ) from None
    return done


class _Progress:
    """A line on a terminal's standard error; nothing elsewhere."""

    def __init__(self, shown: bool) -> None:
        self._bar = None
        if shown:
            from rich.console import Console
            from rich.progress import Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.completed} done, {task.fields[failed]} failed"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, failed=0)

    def update(self, output: Output) -> None:
        """Show how far it is."""
        if self._bar is not None:
            done = output.written - output.failed
            self._bar.update(self._task, completed=done, failed=output.failed)

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _progress(args: argparse.Namespace) -> _Progress:
    own_output = args.output is not None or not sys.stdout.isatty()
    return _Progress(not args.quiet and sys.stderr.isatty() and own_output)
