"""A batch of prompts to JSON lines, resumed where it was interrupted.

Only results count as done: what failed is tried again by the next run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ..client import Client
from ..errors import InvalidRequest
from ..options import GenerationOptions
from .batch_input import Item, opened_input, read_items
from .batch_output import Output, failure, record
from .connection_arguments import opened_client

_WHY = 'their lines say why, under "error"'


def run_batch(
    args: argparse.Namespace, options: GenerationOptions, prompts: list[str]
) -> int:
    """Generate for the prompts, or for the batch; 1 where some failed."""
    with (
        _items(args, prompts) as items,
        closing(Output(args.output, _inputs(args))) as output,
        opened_client(args) as client,
        _progress(args) as progress,
    ):
        todo = (item for item in items if item.id not in output.done)
        for line in results(client, todo, options):
            output.write(line)
            progress.update(output)
    if not args.quiet:
        skipped = f", {len(output.done)} already there" if output.done else ""
        failed = f", {output.failed} failed ({_WHY})" if output.failed else ""
        print(
            f"{output.written - output.failed} done{failed}{skipped}", file=sys.stderr
        )
    elif output.failed:
        print(f"optserve: {output.failed} failed ({_WHY})", file=sys.stderr)
    return 1 if output.failed else 0


def results(
    client: Client, items: Iterable[Item], options: GenerationOptions
) -> Iterator[dict[str, Any]]:
    """A line for each item, as they end; a bad one fails alone."""
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
                failed.append(failure(item.id, item.rest, str(error)))
                continue
            under_way[next(read)] = item
            yield ids

    for result in client.generate_many(prompts(), **vars(options)):
        yield from failed
        failed.clear()
        item = under_way.pop(result.index)
        prompt = {"prompt": item.prompt} if isinstance(item.prompt, str) else {}
        yield record(item.id, item.rest | prompt, result.to_dict())
    yield from failed


@contextmanager
def _items(args: argparse.Namespace, prompts: list[str]) -> Iterator[Iterator[Item]]:
    if not args.jsonl:
        yield (Item(i, prompt) for i, prompt in enumerate(prompts))
        return
    with opened_input(args.jsonl) as file:
        yield read_items(file)


def _inputs(args: argparse.Namespace) -> list[os.stat_result]:
    """Which files the prompts come from."""
    paths = [path for path in (args.jsonl, *args.file) if path]
    read = [os.fstat(0) if path == "-" else os.stat(path) for path in paths]
    return [*read, os.fstat(0)] if "-" in args.prompts else read


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
