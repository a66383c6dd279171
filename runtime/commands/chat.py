"""``optserve chat``: turns in the terminal, the cache kept between them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from ..conversation import Conversation
from ..errors import InvalidRequest, PromptTooLong
from ..options import GenerationKeywords
from ..printable import sentence
from .connection_arguments import add_connection, add_prefix_cache, opened_client
from .generation_arguments import add_generation, generation_keywords
from .prompt_text import say, utf8

_HELP = "/reset forgets, /tokens counts, /quit (or Ctrl-D) ends, Ctrl-C stops a turn"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_connection(parser)
    add_generation(parser)
    add_prefix_cache(parser)
    parser.add_argument(
        "--template",
        default="{}\n",
        metavar="TEXT",
        help="how a line becomes what the model reads, {} being the line; \\n is a "
        "line break ('{}\\n')",
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="said at the start"
    )


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    template = args.template.replace("\\n", "\n")
    if "{}" not in template:
        raise InvalidRequest(f"--template must hold {{}}, got {args.template!r}")
    keywords = generation_keywords(args)
    interactive = sys.stdin.isatty()
    with opened_client(args) as client:
        talk = client.conversation()
        if interactive:
            print(_HELP, file=sys.stderr)
        beginning = args.system.replace("\\n", "\n")
        for line in _lines(interactive):
            if line in ("/quit", "/exit"):
                break
            if line == "/reset":
                talk.reset()
                beginning = args.system.replace("\\n", "\n")
                continue
            if line == "/tokens":
                print(f"{len(talk.tokens)} tokens", file=sys.stderr)
                continue
            said = beginning + template.replace("{}", line)
            try:
                _answer(talk, said, args.max_new_tokens, keywords)
            except PromptTooLong as error:
                if not interactive:
                    raise
                print(f"{sentence(error)} (or /reset)", file=sys.stderr)
            else:
                beginning = ""
    return 0


def _answer(
    talk: Conversation, said: str, most: int, keywords: GenerationKeywords
) -> None:
    """One turn; Ctrl-C keeps what was said so far."""
    chunks = talk.say(said, max_new_tokens=most, **keywords)
    try:
        for chunk in chunks:
            say(chunk.text)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        chunks.close()
    print()


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of standard input, asked for with a prompt on a terminal."""
    if not interactive:
        for line in sys.stdin.buffer:
            if line.strip():
                yield utf8(line, "standard input").rstrip("\n")
        return
    while True:
        try:
            line = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line
