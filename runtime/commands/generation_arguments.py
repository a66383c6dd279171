"""Options that say how to generate, as ``Client.generate``'s keywords."""

from __future__ import annotations

import argparse

from ..errors import InvalidRequest
from ..option_checks import INT32_MAX
from ..options import Beams, Constraints, GenerationKeywords
from ..sampling import Sampling
from .argument_types import Group, float32, number, refuse, seconds, short, whole

_DRAWN_BY = ("seed", "top_k", "top_p", "min_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
"""Fields of :class:`Sampling` that matter above temperature 0, and at any."""


def add_generation(parser: argparse.ArgumentParser) -> None:
    """How to generate."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-new-tokens",
        type=whole(1, INT32_MAX),
        default=64,
        metavar="N",
        help="most tokens to generate (default 64)",
    )
    _add_sampling(group)
    _add_constraints(group)
    _add_end(group)
    group.add_argument(
        "--truncate-left",
        action="store_true",
        help="drop the beginning of a prompt that is too long",
    )


def _add_sampling(group: Group) -> None:
    """The fields of :class:`Sampling`."""
    add = group.add_argument
    add(
        "--temperature",
        type=float32,
        default=0.0,
        metavar="T",
        help="above 0, draw tokens; 0 takes the likeliest (default)",
    )
    add(
        "--top-k",
        type=whole(0, INT32_MAX),
        metavar="K",
        help="sample from the K likeliest tokens (default 0: from all)",
    )
    add(
        "--top-p",
        type=number(0, 1),
        metavar="P",
        help="sample from the likeliest tokens of mass P (default 1)",
    )
    add(
        "--min-p",
        type=number(0, 1),
        metavar="P",
        help="leave out what is less than P times the likeliest's (default 0)",
    )
    add(
        "--seed",
        type=whole(-(2**63), 2**64 - 1),
        metavar="N",
        help="the same seed draws the same tokens",
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


def _add_constraints(group: Group) -> None:
    """The fields of :class:`Constraints`."""
    add = group.add_argument
    for name, text in (
        ("--min-new-tokens", "do not end before N tokens"),
        ("--no-repeat-ngram", "never repeat N tokens in a row (default 0: may)"),
    ):
        add(name, type=whole(0, INT32_MAX), default=0, metavar="N", help=text)
    for name, metavar, text in (
        ("--bad-word", "TEXT", "never generate this"),
        ("--logit-bias", "ID=X", "add X to a token's logit"),
    ):
        add(name, action="append", default=[], metavar=metavar, help=text)


def _add_end(group: Group) -> None:
    """What ends a generation."""
    add = group.add_argument
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
        type=whole(-1, INT32_MAX),
        metavar="ID",
        help="end at this token instead of the model's end token; -1: at none",
    )
    add("--timeout", type=seconds, metavar="S", help="seconds for each generation")


def generation_keywords(args: argparse.Namespace) -> GenerationKeywords:
    """The keywords of ``Client.generate`` for the parsed options."""
    keywords = GenerationKeywords(
        sampling=_sampling(args),
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


def _sampling(args: argparse.Namespace) -> Sampling:
    """The sampling; refuses what would change nothing, which the API ignores."""
    names = ("temperature", *_DRAWN_BY, *_PENALTIES)
    options = {name: getattr(args, name) for name in names}
    given = {name: value for name, value in options.items() if value is not None}
    sampling = Sampling(**given)
    useless = [name for name in _DRAWN_BY if name in given]
    if sampling.greedy and useless:
        raise InvalidRequest(
            f"--{useless[0].replace('_', '-')} changes nothing at temperature 0, where "
            "no token is drawn: give --temperature above 0 as well, or leave it out"
        )
    return sampling


def beams_of(args: argparse.Namespace) -> Beams | None:
    """Beam search, where it was asked for."""
    names = ("returned", "length_penalty", "early_stopping")
    if args.beams is None:
        refuse(args, names, "is for beam search: give --beams as well")
        return None
    given = {name: getattr(args, name) for name in names}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Beams(width=args.beams, **chosen)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return whole(0, INT32_MAX)(token), float(bias)
    except (ValueError, argparse.ArgumentTypeError):
        raise InvalidRequest(
            f"--logit-bias must be ID=NUMBER, got {short(text)}"
        ) from None
