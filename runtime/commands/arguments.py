"""Options that the client's commands share, and how they become objects."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client import Client
from ..errors import InvalidRequest
from ..options import Beams, Constraints, GenerationKeywords
from ..sampling import Sampling
from ..transports.resolve import is_tflite

if TYPE_CHECKING:
    from ..server import EmbeddedServer


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
        "--model",
        metavar="OUT",
        help="an export's folder, served for the time of this command",
    )
    add = group.add_argument
    add("--name", default="opt", help="the model's name on the server (opt)")
    add("--label", default="", help="version label on the server (the newest version)")
    add("--tokenizer", metavar="DIR", help="tokenizer, where the export holds none")
    add("--wait", type=float, metavar="S", help="wait for the model to become ready")
    add("--max-rows", type=int, metavar="B", help="most rows of one call")
    add("--threads", type=int, metavar="T", help="of a .tflite model (up to 4)")
    add("--tls-ca", metavar="PEM", help="encrypt, and trust these certificates")
    add("--tls-cert", metavar="PEM", help="the client's certificate (mTLS)")
    add("--tls-key", metavar="PEM", help="and its key")
    add("--tls-server-name", metavar="NAME", help="name in the server's certificate")
    add(
        "--token-file",
        metavar="FILE",
        help="send its content as a bearer token (read again for each call)",
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """How to generate."""
    add = parser.add_argument_group("generation").add_argument
    add("--max-new-tokens", type=int, default=64, metavar="N", help="at most (64)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    add("--top-k", type=int, default=0, metavar="K", help="of the K likeliest (0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="of the likeliest P (1)")
    add("--repetition-penalty", type=float, default=1.0, metavar="R", help="1: none")
    add("--seed", type=int, help="makes sampling repeatable")
    add("--stop", action="append", default=[], metavar="TEXT", help="end at this text")
    add(
        "--stop-token-id",
        action="append",
        type=int,
        metavar="ID",
        help="end at this token instead of the model's end token; -1 for at none",
    )
    add("--min-new-tokens", type=int, default=0, metavar="N", help="no end before")
    add("--no-repeat-ngram", type=int, default=0, metavar="N", help="0: allowed")
    add("--bad-word", action="append", default=[], metavar="TEXT", help="never say")
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
    add("--timeout", type=float, metavar="S", help="seconds for each generation")


@contextmanager
def opened_client(args: argparse.Namespace) -> Iterator[Client]:
    """A client for the parsed options; with ``--model`` also the server behind it."""
    common = {
        "model": args.name,
        "tokenizer": args.tokenizer,
        "max_rows": args.max_rows,
    }
    if args.target:
        options = _connection(args)
        options |= {"wait": args.wait, "label": args.label}
        with Client(args.target, **common, **options) as client:
            yield client
        return
    if args.label:
        raise InvalidRequest("--label needs --target: labels are a server's")
    path = Path(args.model)
    if is_tflite(path):
        with Client(path, threads=args.threads, **common) as client:
            yield client
        return
    with (
        _embedded(path, args.name) as server,
        Client(server.target, **common) as client,
    ):
        yield client


def _embedded(path: Path, name: str) -> EmbeddedServer:
    from ..server import EmbeddedServer

    return EmbeddedServer(path, name=name)


def generation_keywords(args: argparse.Namespace) -> GenerationKeywords:
    """The keywords of ``Client.generate`` for the parsed options."""
    keywords = GenerationKeywords(
        sampling=Sampling(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
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
    if args.beams is None:
        return None
    return Beams(
        width=args.beams,
        returned=args.returned,
        length_penalty=args.length_penalty,
        early_stopping=args.early_stopping,
    )


def _connection(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if args.tls_ca or args.tls_cert or args.tls_key:
        from ..transports.connection import Tls

        options["tls"] = Tls(
            roots=_file(args.tls_ca),
            certificate_chain=_file(args.tls_cert),
            private_key=_file(args.tls_key),
            server_name=args.tls_server_name,
        )
    if args.token_file:
        path = Path(args.token_file)
        path.read_bytes()  # tells at once where it can't be read
        options["metadata"] = lambda: [
            ("authorization", "Bearer " + path.read_text().strip())
        ]
    return options


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


def _file(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise InvalidRequest(f"--logit-bias must be ID=NUMBER, got {text!r}") from None
