"""``optserve evaluate``: how well a served model predicts a text."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import track

from ...models.regular_files import read_regular_file
from ..client import Client
from ..errors import InvalidRequest
from ..printable import json_text
from .argument_types import whole
from .connection_arguments import add_connection, opened_client
from .prompt_text import utf8

_MOST_BYTES = 1 << 30
_ROWS = 8  # windows between two steps of the progress bar


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_connection(parser, positional=True)
    add = parser.add_argument
    add("--text", required=True, metavar="FILE", help="UTF-8 text")
    add(
        "--window",
        type=whole(2, 2**31 - 1),
        metavar="TOKENS",
        help="most tokens that the model sees at once (its positions)",
    )
    add(
        "--stride",
        type=whole(1, 2**31 - 1),
        metavar="TOKENS",
        help="tokens between the begins of two windows (the window: none twice)",
    )
    add("--limit", type=whole(2, 2**31 - 1), metavar="TOKENS", help="only so many")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Score the text in windows and print its perplexity."""
    data = read_regular_file(args.text, limit=_MOST_BYTES)
    with opened_client(args) as client:
        tokens = client.encode(utf8(data, args.text))[: args.limit]
        if len(tokens) < 2:
            raise InvalidRequest(f"{args.text} holds no text to predict")
        positions = client.describe().max_positions
        window = min(args.window or positions, positions)
        stride = min(args.stride or window - 1, window - 1)
        total = _log_probability(client, tokens, window, stride)
        size = _text_bytes(client, tokens[1:])
    count = len(tokens) - 1
    figures = {
        "tokens": count,
        "loss": -total / count,
        "perplexity": math.exp(-total / count) if total > -700 * count else math.inf,
        "bits_per_byte": -total / math.log(2) / size,
        "window": window,
        "stride": stride,
    }
    if args.json:
        print(json_text(figures))
    else:
        print(
            f"perplexity {figures['perplexity']:.4f} over {count} tokens "
            f"({figures['loss']:.4f} nats per token, "
            f"{figures['bits_per_byte']:.4f} bits per byte; "
            f"windows of {window}, stride {stride})"
        )
    return 0


def _text_bytes(client: Client, tokens: Sequence[int]) -> int:
    """How long the text is that these tokens stand for."""
    assert client.tokenizer is not None  # it has encoded them
    return sum(len(client.tokenizer.token_bytes(token, False)) for token in tokens)


def windows(count: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and the first token to count of each window over ``count`` tokens.

    Every token but the text's first is counted once, in the first window that has it,
    and always with a token before it.
    """
    begin, counted = 0, 1
    while counted < count:
        end = min(begin + size, count)
        yield begin, end, counted
        counted, begin = end, begin + stride


def _log_probability(
    client: Client, tokens: Sequence[int], size: int, stride: int
) -> float:
    """Of all tokens after the first, in nats."""
    parts = list(windows(len(tokens), size, stride))
    groups = [parts[i : i + _ROWS] for i in range(0, len(parts), _ROWS)]
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    total = 0.0
    for group in track(groups, "scoring", console=console):
        scores = client.score([tokens[begin:end] for begin, end, _ in group])
        for (begin, _, counted), score in zip(group, scores, strict=True):
            total += math.fsum(score.logprobs[counted - begin :])
    return total
