"""Options that the commands share, and how they become objects."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...models.regular_files import read_regular_file
from ..client import Client
from ..decoding.prefix_cache import PrefixCache
from ..errors import InvalidRequest
from ..options import Beams, Constraints, GenerationKeywords
from ..printable import printable
from ..sampling import Sampling
from ..transports.connection import Connection, Tls, check_secrecy
from ..transports.resolve import Target

_INT32 = 2**31 - 1
_SMALLEST, _LARGEST = 1e-37, 1e38  # that float32 holds with all its digits
_LONGEST_TOKEN = 64 << 10  # bytes; servers take fewer
_LONGEST_PROMPT = 64 << 20  # bytes of text
_LONGEST = 1e9  # seconds; some 30 years


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argument's type: a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also for thousands of digits
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {low} to {high}, got {_short(text)}"
            )
        return value

    return read


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argument's type: a finite number from ``low`` to ``high``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            between = f"from {low:g} to {high:g}" if math.isfinite(high) else ""
            if not between:
                between = "" if math.isinf(low) else f"of {low:g} or more"
            raise argparse.ArgumentTypeError(
                f"expected a number {between}".rstrip() + f", got {_short(text)}"
            )
        return value

    return read


def float32(text: str) -> float:
    """An argument's type: 0 or more, as the graphs take it."""
    value = number(0)(text)
    if value and not _SMALLEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a number of 0, or from {_SMALLEST:g} to {_LARGEST:g}, "
            f"got {_short(text)}"
        )
    return value


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}…")


def given(text: str) -> str:
    """An argument's type: a text that isn't empty, as that of an unset variable is."""
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got an empty text")
    return text


seconds = number(0.001, _LONGEST)
"""An argument's type: a time to wait."""


def add_connection(parser: argparse.ArgumentParser) -> None:
    """What to talk to, and how."""
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--target",
        action="append",
        metavar="ADDRESS",
        help="server: HOST:PORT, unix:PATH or dns:///NAME:PORT; repeat for replicas",
    )
    which.add_argument(
        "--model", metavar="OUT", help="an export's folder, run in this process"
    )
    add = group.add_argument
    add("--name", default="opt", help="the model's name on the server (default opt)")
    add("--label", default="", help="version label to follow (default: newest version)")
    add(
        "--tokenizer",
        type=given,
        metavar="DIR",
        help="tokenizer to use instead of the export's",
    )
    add("--wait", type=seconds, metavar="S", help="wait S seconds for the model")
    add("--max-rows", type=whole(1, _INT32), metavar="B", help="most rows of one call")
    add(
        "--threads",
        type=whole(1, 1024),
        metavar="T",
        help="threads for --model (default: the runtime's own choice)",
    )
    add("--tls", action="store_true", help="encrypt, trusting the system's authorities")
    add(
        "--tls-ca",
        type=given,
        metavar="PEM",
        help="encrypt, trusting these certificates",
    )
    add(
        "--tls-cert",
        type=given,
        metavar="PEM",
        help="encrypt; the client's certificate (mTLS)",
    )
    add("--tls-key", type=given, metavar="PEM", help="the key of --tls-cert")
    add(
        "--tls-server-name",
        type=given,
        metavar="NAME",
        help="encrypt; the name in the server's certificate",
    )
    add(
        "--token-file",
        type=given,
        metavar="FILE",
        help="send its content as a bearer token (read again for each call)",
    )
    add(
        "--insecure-token",
        action="store_true",
        help="send the token without encryption to other machines, too",
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """How to generate."""
    add = parser.add_argument_group("generation").add_argument
    add(
        "--max-new-tokens",
        type=whole(1, _INT32),
        default=64,
        metavar="N",
        help="most tokens to generate (default 64)",
    )
    add(
        "--temperature",
        type=float32,
        default=0.0,
        metavar="T",
        help="0 is greedy (default)",
    )
    add(
        "--top-k",
        type=whole(0, _INT32),
        default=0,
        metavar="K",
        help="sample from the K likeliest tokens (default 0: from all)",
    )
    add(
        "--top-p",
        type=number(0, 1),
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens of mass P (default 1)",
    )
    add(
        "--min-p",
        type=number(0, 1),
        default=0.0,
        metavar="P",
        help="leave out what is less than P times the likeliest's (default 0)",
    )
    add(
        "--repetition-penalty",
        type=float32,
        default=1.0,
        metavar="R",
        help="above 1, tokens seen before are less likely (default 1)",
    )
    for name, text in (
        ("--presence-penalty", "above 0, generated tokens are less likely (default 0)"),
        ("--frequency-penalty", "the same for each time that they came (default 0)"),
    ):
        add(name, type=number(-2, 2), default=0.0, metavar="X", help=text)
    add(
        "--seed",
        type=whole(-(2**63), 2**64 - 1),
        metavar="N",
        help="the same seed draws the same tokens",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text",
    )
    add(
        "--stop-token-id",
        action="append",
        type=whole(-1, _INT32),
        metavar="ID",
        help="end at this token instead of the model's end token; -1: at none",
    )
    for name, text in (
        ("--min-new-tokens", "do not end before N tokens"),
        ("--no-repeat-ngram", "never repeat N tokens in a row (default 0: may)"),
    ):
        add(name, type=whole(0, _INT32), default=0, metavar="N", help=text)
    add(
        "--bad-word",
        action="append",
        default=[],
        metavar="TEXT",
        help="never generate this",
    )
    add(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=X",
        help="add X to a token's logit",
    )
    add(
        "--truncate-left",
        action="store_true",
        help="drop the beginning of a prompt that is too long",
    )
    add("--timeout", type=seconds, metavar="S", help="seconds for each generation")


def add_prefix_cache(parser: argparse.ArgumentParser) -> None:
    """What prompts have in common is computed once."""
    add = parser.add_argument_group("prefix cache").add_argument
    add(
        "--prefix-cache",
        metavar="FOLDER",
        help="keep prompts' cache rows there, for later prompts that begin alike; "
        "closed to other users",
    )
    add(
        "--prefix-cache-bytes",
        type=whole(1, 2**63 - 1),
        metavar="N",
        help="most bytes of rows in memory (1 GiB with a folder, else none are kept) "
        "and in the folder (8 GiB)",
    )


@contextmanager
def opened_prefix_cache(args: argparse.Namespace) -> Iterator[PrefixCache | None]:
    """What was asked for; None where nothing was."""
    folder = getattr(args, "prefix_cache", None)
    limit = getattr(args, "prefix_cache_bytes", None)
    if folder is None and limit is None:
        yield None
        return
    sizes = {} if limit is None else {"memory_bytes": limit, "folder_bytes": limit}
    with PrefixCache(folder=folder, **sizes) as prefixes:
        yield prefixes


@contextmanager
def opened_client(args: argparse.Namespace) -> Iterator[Client]:
    """A client for the parsed options: of servers, or of a model in this process."""
    target, options = client_options(args)
    with (
        opened_prefix_cache(args) as prefixes,
        Client(target, prefix_cache=prefixes, **options) as client,
    ):
        yield client


def client_options(args: argparse.Namespace) -> tuple[Target, dict[str, Any]]:
    """What ``Client`` and ``AsyncClient`` take for the parsed options."""
    options: dict[str, Any] = {"tokenizer": args.tokenizer, "max_rows": args.max_rows}
    if args.target:
        _refuse(args, ("threads",), "needs --model: a server has threads of its own")
        options |= {"model": args.name, "label": args.label, "wait": args.wait}
        return args.target, options | _connection(args)
    _refuse(args, _SERVER_ONLY, "needs --target: --model runs in this process")
    return Path(args.model), options | {"threads": args.threads}


_SERVER_ONLY = (
    *("label", "wait", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name"),
    *("token_file", "insecure_token"),
)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            raise InvalidRequest(f"{option} {reason}")


def generation_keywords(args: argparse.Namespace) -> GenerationKeywords:
    """The keywords of ``Client.generate`` for the parsed options."""
    keywords = GenerationKeywords(
        sampling=Sampling(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            min_p=args.min_p,
            presence_penalty=args.presence_penalty,
            frequency_penalty=args.frequency_penalty,
            seed=args.seed,
        ),
        stop=args.stop,
        truncate="left" if args.truncate_left else None,
        timeout=args.timeout,
    )
    if args.stop_token_id is not None:
        keywords["stop_token_ids"] = [i for i in args.stop_token_id if i != -1]
    constraints = Constraints(
        no_repeat_ngram=args.no_repeat_ngram,
        bad_words=args.bad_word,
        min_new_tokens=args.min_new_tokens,
        logit_bias=dict(map(_bias, args.logit_bias)),
    )
    if constraints != Constraints(bad_words=[]):
        keywords["constraints"] = constraints
    return keywords


def beams_of(args: argparse.Namespace) -> Beams | None:
    """Beam search, where it was asked for."""
    names = ("returned", "length_penalty", "early_stopping")
    if args.beams is None:
        _refuse(args, names, "is for beam search: give --beams as well")
        return None
    given = {name: getattr(args, name) for name in names}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Beams(width=args.beams, **chosen)


def _connection(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    files = (args.tls_ca, args.tls_cert, args.tls_key)
    encrypted = args.tls or args.tls_server_name or any(files)
    if encrypted:
        roots, chain, key = (None if file is None else Path(file) for file in files)
        options["tls"] = Tls(
            roots=roots,
            certificate_chain=chain,
            private_key=key,
            server_name=args.tls_server_name,
        )
    if args.token_file:
        options["insecure_token"] = args.insecure_token
        secret = [("authorization", "")]
        check_secrecy(secret, args.target, Connection(**options))
        options["metadata"] = _bearer_token(args.token_file)
    return options


def _bearer_token(path: str) -> Callable[[], list[tuple[str, str]]]:
    def read() -> list[tuple[str, str]]:
        try:
            data = read_regular_file(path, limit=_LONGEST_TOKEN)
        except OSError as error:
            raise InvalidRequest(
                f"the token file {path} can't be used, which is read for each call: "
                f"{error.strerror}"
            ) from None
        token = data.decode("ascii", "replace").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise InvalidRequest(
                f"the token file {path} must hold one line of printable ASCII"
            )
        return [("authorization", f"Bearer {token}")]

    read()  # tells at once where it can't be used
    return read


def say(text: str, *, end: str = "") -> None:
    """Print a text that a model made; on a terminal its escapes don't act."""
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


def read_prompt(file: IO[bytes], source: str) -> str:
    """A prompt's text from a file that may never end.

    Raises:
        InvalidRequest: it is not UTF-8, or has no end; ``source`` says whose it is.
    """
    data = file.read(_LONGEST_PROMPT + 1)
    if len(data) > _LONGEST_PROMPT:
        raise InvalidRequest(f"{source} has more than {_LONGEST_PROMPT} bytes")
    return utf8(data, source)


def utf8(data: bytes, source: str) -> str:
    """The text of a prompt, its line breaks as ``\\n``.

    Raises:
        InvalidRequest: it is not UTF-8; ``source`` says where it came from.
    """
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{source} is not UTF-8 text (byte {error.start + 1}): convert it first"
        ) from None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return whole(0, _INT32)(token), float(bias)
    except (ValueError, argparse.ArgumentTypeError):
        raise InvalidRequest(
            f"--logit-bias must be ID=NUMBER, got {_short(text)}"
        ) from None
