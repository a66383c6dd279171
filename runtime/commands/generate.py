"""``optserve generate``: continue prompts from arguments, files and JSONL batches."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator

from ..client import Client
from ..errors import InvalidRequest
from ..options import GenerationOptions
from ..results import Generation
from .argument_types import Group, number, whole
from .batch import run_batch
from .connection_arguments import add_connection, add_prefix_cache, opened_client
from .generation_arguments import add_generation, beams_of, generation_keywords
from .prompt_text import read_prompt, say, utf8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="text to continue; - reads stdin")
    add(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a file whose whole text is a prompt; repeatable",
    )
    add(
        "--jsonl",
        metavar="FILE",
        help='a batch, one {"id": …, "prompt": text or token ids} per line; - is stdin',
    )
    add(
        "--output",
        metavar="FILE",
        help="append JSON lines to this file; ids that it has are skipped",
    )
    add("--json", action="store_true", help="JSON lines with all fields on stdout")
    add("--with-prompt", action="store_true", help="print the prompt as well")
    add("--quiet", action="store_true", help="no summary and no progress on stderr")
    add_connection(parser)
    add_generation(parser)
    add_prefix_cache(parser)
    _add_several(parser.add_argument_group("several sequences"))
    add = parser.add_argument_group("log-probabilities").add_argument
    add(
        "--top-logprobs",
        type=whole(0, 100_000),
        default=0,
        metavar="K",
        help="report the K likeliest tokens of each step",
    )
    add("--echo", action="store_true", help="the prompt's log-probabilities as well")


def _add_several(group: Group) -> None:
    """Several continuations of a prompt: samples, or the fields of :class:`Beams`."""
    add, count = group.add_argument, whole(1, 1000)
    add(
        "--samples",
        type=count,
        default=1,
        metavar="N",
        help="draw N continuations, likeliest first",
    )
    add("--beams", type=count, metavar="N", help="beam search with N beams")
    add("--returned", type=count, metavar="N", help="beams to print (default 1)")
    add(
        "--length-penalty",
        type=number(-math.inf),
        metavar="P",
        help="exponent of the length that a beam's score is divided by (default 1)",
    )
    add(
        "--early-stopping",
        action="store_true",
        default=None,
        help="end as soon as there are as many finished beams",
    )


def run(args: argparse.Namespace) -> int:
    """Generate; 1 where some of a batch failed."""
    prompts = [*_arguments(args.prompts), *map(_file_text, args.file)]
    if bool(prompts) == bool(args.jsonl):
        raise InvalidRequest(
            "give prompts (as arguments or with --file) or a batch with --jsonl"
        )
    keywords = generation_keywords(args)
    keywords["beams"] = beams_of(args)
    keywords["samples"] = args.samples
    keywords["top_logprobs"] = args.top_logprobs
    keywords["echo"] = args.echo
    options = GenerationOptions(max_new_tokens=args.max_new_tokens, **keywords)
    if args.jsonl or args.output or args.json:
        return run_batch(args, options, prompts)
    with opened_client(args) as client:
        for i, prompt in enumerate(prompts):
            if i:
                print()
            result = _show(client, prompt, options, args)
            if not args.quiet:
                print(_summary(result), file=sys.stderr)
    return 0


def _show(
    client: Client, prompt: str, options: GenerationOptions, args: argparse.Namespace
) -> Generation:
    """Print a continuation as it comes, or all of them where there are several."""
    if args.with_prompt:
        say(prompt)
    keywords = vars(options)
    if options.beams or options.samples > 1 or options.echo:
        (result,) = client.generate([prompt], **keywords)
        sequences = [result, *result.alternatives]
        for i, one in enumerate(sequences):
            say(one.text if len(sequences) == 1 else f"[{i + 1}] {one.text}", end="\n")
        return result
    stream = client.stream(prompt, **keywords)
    for chunk in stream:
        say(chunk.text)
    print()
    return stream.generation


def _summary(result: Generation) -> str:
    speed = ""
    if result.tokens_per_second:
        speed = f", {result.tokens_per_second:.1f} tokens/s"
    first = 1000 * result.counters.first_token_seconds
    known = result.cached_prompt_tokens
    cached = f"{known} of {result.prompt_tokens} prompt tokens cached, " * bool(known)
    return (
        f"{len(result.tokens)} tokens{speed}, first after {first:.0f} ms, {cached}"
        f"ended by {result.finish_reason}"
    )


def _arguments(prompts: list[str]) -> Iterator[str]:
    for prompt in prompts:
        if prompt == "-":
            yield read_prompt(sys.stdin.buffer, "standard input")
        else:
            yield utf8(os.fsencode(prompt), "a prompt")


def _file_text(path: str) -> str:
    with open(path, "rb") as file:
        return read_prompt(file, path)
