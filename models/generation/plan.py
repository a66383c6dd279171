"""From a generation configuration to what a search needs to know.

What decides the shape of a compiled program stands in :class:`Plan`, which is hashable;
numbers that may change from call to call without compiling anew in :class:`Numbers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from . import logits_processors as rules
from .config import GenerationConfig
from .logits_processors import Rule
from .sampling_params import SamplingParams

NOT_FOLLOWED = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "prompt_lookup_num_tokens": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": None,
    "max_time": None,
    "stop_strings": None,
    "token_healing": False,
    "watermarking_config": None,
    "dola_layers": None,
}
"""Fields that would change the tokens and that no class here follows, with the values
that mean "off" (besides null)."""

NEEDLESS = {
    *("renormalize_logits", "remove_invalid_values", "low_memory", "output_logits"),
    *("cache_implementation", "cache_config", "return_legacy_cache"),
    *("prefill_chunk_size", "compile_config", "disable_compile"),
    *("decoder_start_token_id", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold"),
}
"""Fields of PyTorch's classes alone, which change no token here."""


class Numbers(NamedTuple):
    """What a compiled program takes as arrays."""

    limit: Any  # new tokens at most
    min_new: Any  # no end before that many new tokens
    min_length: Any  # nor before that length, the prompt included
    max_length: Any  # length of prompt and continuation
    sampling: SamplingParams


@dataclass(frozen=True)
class Plan:
    """What is asked of a search, without the numbers."""

    mode: str  # greedy, sample, beam, beam_sample, contrastive
    eos: tuple[int, ...]
    pad: int
    slots: int  # N, new tokens that there is room for
    beams: int = 1
    returned: int = 1
    top_k: int = 0  # of contrastive search
    penalty_alpha: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    biases: tuple[tuple[tuple[int, ...], float], ...] = ()
    penalized: bool = False
    counted: bool = False
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    forced_bos: int | None = None
    forced_eos: int | None = None
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    forced: tuple[tuple[int, int], ...] = ()  # length of the sequence → token
    ends_late: bool = False
    with_scores: bool = False
    with_hidden_states: bool = False
    with_attentions: bool = False
    custom: tuple[Callable[..., Any], ...] = ()

    @property
    def copies(self) -> int:
        """How many rows a prompt has from the start."""
        return self.beams if self.mode.startswith("beam") else self.returned

    def rules(self, numbers: Numbers) -> list[Rule]:
        """The rules on the next token, in Transformers' order."""
        active: list[Rule] = []
        if self.biases:
            active.append(rules.sequence_bias(self.biases))
        if self.penalized:
            penalty = numbers.sampling.repetition_penalty[:, None]
            active.append(rules.repetition_penalty(penalty))
        if self.counted:
            frequency = numbers.sampling.frequency_penalty[:, None]
            presence = numbers.sampling.presence_penalty[:, None]
            active.append(rules.count_penalties(frequency, presence))
        if self.no_repeat_ngram:
            active.append(rules.no_repeat_ngram(self.no_repeat_ngram))
        if self.bad_words:
            active.append(rules.bad_words(self.bad_words))
        if self.ends_late and self.eos:
            active.append(rules.min_length(numbers.min_length, self.eos))
            active.append(rules.min_new_tokens(numbers.min_new, self.eos))
        if self.forced_bos is not None:
            active.append(rules.forced_tokens({1: self.forced_bos}))
        if self.forced_eos is not None:
            last = numbers.max_length - 1
            active.append(rules.forced_tokens({0: self.forced_eos}, last))
        if self.suppressed:
            active.append(rules.suppressed(self.suppressed))
        if self.suppressed_first:
            first = numbers.max_length - numbers.limit
            first += max((length for length, _ in self.forced), default=0)
            active.append(rules.suppressed(self.suppressed_first, first))
        if self.forced:
            active.append(rules.forced_tokens(dict(self.forced)))
        return active


def check(config: GenerationConfig, vocab_size: int) -> None:
    """ValueError for what cannot be, naming the field."""
    for name, off in NOT_FOLLOWED.items():
        if (value := config.extra.get(name)) not in (None, off):
            raise ValueError(f"generate does not support {name}={value!r}")
    for name, low in (("num_beams", 1), ("num_return_sequences", 1)):
        if getattr(config, name) < low:
            raise ValueError(f"{name} should be {low} or more")
    if config.num_beams > 1 and config.num_return_sequences > config.num_beams:
        raise ValueError(
            f"num_return_sequences {config.num_return_sequences} should be at most "
            f"num_beams {config.num_beams}"
        )
    several = config.num_return_sequences > 1
    if several and config.num_beams == 1 and not config.do_sample:
        raise ValueError(
            "num_return_sequences has to be 1 when nothing is sampled and num_beams is "
            f"1, got {config.num_return_sequences}"
        )
    if not (config.temperature or 1) > 0:
        raise ValueError(f"temperature should be above 0, got {config.temperature}")
    if not 0 < (1.0 if config.top_p is None else config.top_p) <= 1:
        raise ValueError(f"top_p should be in (0, 1], got {config.top_p}")
    if not config.repetition_penalty or config.repetition_penalty <= 0:
        raise ValueError(
            f"repetition_penalty should be above 0, got {config.repetition_penalty}"
        )
    if not 0 <= (config.min_p or 0.0) <= 1:
        raise ValueError(f"min_p should be in [0, 1], got {config.min_p}")
    words = list(config.bad_words_ids or []) + [list(ids) for ids, _ in biases(config)]
    ids = [i for word in words for i in word] + eos_ids(config)
    if any(not word for word in words) or any(not 0 <= i < vocab_size for i in ids):
        raise ValueError(
            "bad_words_ids, sequence_bias and eos_token_id should be token ids from 0 "
            f"to {vocab_size - 1}, got {words} and {config.eos_token_id}"
        )


def eos_ids(config: GenerationConfig) -> list[int]:
    """The tokens that end a sequence."""
    eos = config.eos_token_id
    if eos is None:
        return []
    return [int(i) for i in eos] if isinstance(eos, list | tuple) else [int(eos)]


def biases(config: GenerationConfig) -> tuple[tuple[tuple[int, ...], float], ...]:
    """``sequence_bias`` as token sequences and numbers."""
    given = config.sequence_bias or ()
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((tuple(map(int, ids)), float(bias)) for ids, bias in pairs)


def mode(config: GenerationConfig) -> str:
    """Which search a configuration asks for, by the rules of Transformers."""
    if config.penalty_alpha and (config.top_k or 0) > 1 and not config.do_sample:
        return "contrastive"
    if config.num_beams > 1:
        return "beam_sample" if config.do_sample else "beam"
    return "sample" if config.do_sample else "greedy"


def make_plan(
    config: GenerationConfig,
    *,
    slots: int,
    forced_from: int,
    custom: tuple[Callable[..., Any], ...] = (),
    details: bool = False,
) -> Plan:
    """The plan of a configuration.

    ``slots`` is the room for new tokens; ``forced_from`` the length that
    ``forced_decoder_ids`` count from; ``custom`` are the caller's own functions
    ``(input_ids, scores, length) -> scores``. Without ``details`` scores, hidden states
    and attentions are not kept, whatever the configuration asks for.
    """
    details = details and config.return_dict_in_generate
    eos = eos_ids(config)
    pad = config.pad_token_id
    if pad is None:
        pad = eos[0] if eos else 0
    kind = mode(config)
    beam, contrastive = kind.startswith("beam"), kind == "contrastive"
    return Plan(
        mode=kind,
        eos=tuple(eos),
        pad=pad,
        slots=slots,
        beams=config.num_beams if beam else 1,
        returned=config.num_return_sequences,
        top_k=(config.top_k or 0) if contrastive else 0,
        penalty_alpha=(config.penalty_alpha or 0.0) if contrastive else 0.0,
        length_penalty=config.length_penalty if beam else 1.0,
        early_stopping=config.early_stopping if beam else False,
        biases=biases(config),
        penalized=config.repetition_penalty != 1,
        counted=bool(config.presence_penalty or config.frequency_penalty),
        no_repeat_ngram=config.no_repeat_ngram_size or 0,
        bad_words=tuple(map(tuple, config.bad_words_ids or ())),
        forced_bos=config.forced_bos_token_id,
        forced_eos=config.forced_eos_token_id,
        suppressed=tuple(config.suppress_tokens or ()),
        suppressed_first=tuple(config.begin_suppress_tokens or ()),
        forced=tuple(
            (forced_from + at, token) for at, token in config.forced_decoder_ids or ()
        ),
        ends_late=bool(config.min_length or config.min_new_tokens),
        with_scores=config.output_scores and details,
        with_hidden_states=config.output_hidden_states and details,
        with_attentions=config.output_attentions and details,
        custom=custom,
    )


def make_numbers(config: GenerationConfig, *, limit: int, prompt: Any) -> Numbers:
    """The numbers of a configuration; those of ``sampling`` are for any row."""
    top_p = 1.0 if config.top_p is None else config.top_p
    return Numbers(
        limit=limit,
        min_new=config.min_new_tokens or 0,
        min_length=config.min_length or 0,
        max_length=prompt + limit,
        sampling=SamplingParams(
            seed=0,
            temperature=float(config.temperature or 1.0),
            top_k=int(config.top_k or 0),
            top_p=float(top_p),
            repetition_penalty=float(config.repetition_penalty),
            min_p=float(config.min_p or 0.0),
            presence_penalty=float(config.presence_penalty),
            frequency_penalty=float(config.frequency_penalty),
            min_new_tokens=0,  # a rule's, as is
            top_logprobs=0,
        ),
    )


def new_tokens(config: GenerationConfig, prompt: int, positions: int) -> int:
    """How many tokens a call may add to a prompt of ``prompt`` tokens.

    ValueError where that passes ``positions``, the model's limit, or is less than
    ``min_length`` asks for.
    """
    if config.max_new_tokens is not None:
        limit = config.max_new_tokens
    else:
        limit = config.max_length - prompt
    if limit < 1:
        raise ValueError(
            f"the prompt has {prompt} tokens and max_length {config.max_length} leaves "
            "none to generate: set max_new_tokens"
        )
    if config.min_length and config.min_length > prompt + limit:
        raise ValueError(
            f"min_length {config.min_length} is more than the maximum length "
            f"{prompt + limit}"
        )
    if prompt + limit > positions:
        raise ValueError(
            f"{prompt} tokens and {limit} new ones exceed max_position_embeddings "
            f"{positions}"
        )
    return limit
