"""What both frameworks' ``generate`` do with their arguments."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from ..config import OPTConfig
from .arrays import Arrays
from .beam_search import BeamSearch, BeamStyle
from .config import GenerationConfig
from .contrastive_search import ContrastiveSearch
from .plan import NEEDLESS, NOT_FOLLOWED, Numbers, Plan
from .row_search import RowSearch
from .search import Model, Prompt, SearchResult

IGNORED = ("token_type_ids", "position_ids", "tokenizer", "use_model_defaults")
"""Arguments that tokenizers and pipelines give and that change nothing."""
BUCKET = 32
"""Prompts and numbers of new tokens are rounded up to a multiple of this, so that calls
of about the same size run one compiled program."""


class Defaults:
    """A model's generation configuration, which follows its ``config`` until changed.

    As in Transformers: a configuration that wasn't read from a file, nor changed, is
    read anew from ``config.json``'s fields at each call.
    """

    def __init__(self, config: OPTConfig) -> None:
        self._config = config
        self._made: dict[str, Any] | None = None
        self._current = GenerationConfig()
        self._remake()

    def _remake(self) -> None:
        self._current = GenerationConfig.from_model_config(self._config)
        self._made = self._current.to_dict()

    def get(self) -> GenerationConfig:
        """The one that holds now."""
        if self._made is not None and self._current.to_dict() == self._made:
            fresh = GenerationConfig.from_model_config(self._config)
            if fresh.to_dict() != self._made:
                self._current, self._made = fresh, fresh.to_dict()
        return self._current

    def set(self, value: Any) -> None:
        """Another one, for good; None: from ``config.json`` again."""
        if value is None:
            self._remake()
        else:
            self._current, self._made = as_config(value), None


def as_config(value: Any) -> GenerationConfig:
    """Ours, or one of Transformers' objects, or a dict."""
    if isinstance(value, GenerationConfig):
        return value
    return GenerationConfig.from_dict(
        value if isinstance(value, Mapping) else value.to_dict()
    )


def merged(
    default: GenerationConfig, given: Any, options: dict[str, Any], accepted: set[str]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The configuration of a call, and the arguments that are not part of it.

    ValueError for arguments that nothing knows, as Transformers has it.
    """
    config = deepcopy(as_config(given) if given is not None else default)
    if given is not None:  # what it leaves open the model's own says
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(default, name))
    rest = config.update(**options)
    for name in rest.keys() & (NOT_FOLLOWED.keys() | NEEDLESS):
        config.extra[name] = rest.pop(name)
    for name in IGNORED:
        rest.pop(name, None)
    rest = {name: value for name, value in rest.items() if value is not None}
    if unknown := sorted(rest.keys() - accepted):
        raise ValueError(
            f"the following `model_kwargs` are not used by the model: {unknown} "
            "(generate has no such argument)"
        )
    if options.get("max_length") is not None and options.get("max_new_tokens") is None:
        config.max_new_tokens = None
    return config, rest


def seed_words(seed: int | Sequence[int] | None) -> np.ndarray:
    """A seed's low and high word, [2] int32; a pair is taken as these. None draws one.

    The same words as the served graphs take for the same number.
    """
    if seed is None:
        seed = secrets.randbits(63)
    if isinstance(seed, int | np.integer):
        number = int(seed) % 2**64
        words = np.array([number & 0xFFFFFFFF, number >> 32], np.uint32)
    else:
        words = np.asarray(seed).astype(np.int64).astype(np.uint32)
    if words.shape != (2,):
        raise ValueError(f"seed should be a number or two words, got {seed!r}")
    return words.view(np.int32)


def row_seeds(words: np.ndarray, copies: int) -> np.ndarray:
    """Seeds [copies,2] int32: copy j of every prompt draws by seed + j."""
    low, high = (int(word) for word in words.view(np.uint32))
    return np.stack([seed_words((low | high << 32) + j) for j in range(copies)])


def rounded(size: int) -> int:
    """The next multiple of :data:`BUCKET`."""
    return -(-size // BUCKET) * BUCKET


def search(
    xp: Arrays,
    model: Model,
    plan: Plan,
    numbers: Numbers,
    prompt: Prompt,
    style: BeamStyle,
) -> SearchResult:
    """Run the search that the plan is for."""
    if plan.mode.startswith("beam"):
        return BeamSearch(xp, model, plan, numbers, prompt, style).run()
    kind = ContrastiveSearch if plan.mode == "contrastive" else RowSearch
    return kind(xp, model, plan, numbers, prompt).run()
