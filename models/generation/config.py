"""``generation_config.json``: how a model generates unless a call says otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..config import OPTConfig
from ..json_files import read_json, write_json

FILE = "generation_config.json"


@dataclass
class GenerationConfig:
    """The fields of ``generation_config.json`` with Transformers' names and defaults.

    A key that is not a field is kept in ``extra`` and written back. ``seed`` is ours:
    any 64-bit number, from which the noise of sampling is counted. So are
    ``presence_penalty`` and ``frequency_penalty``, OpenAI's, on new tokens.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    num_beams: int = 1
    penalty_alpha: float | None = None
    use_cache: bool = True
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: Any = None  # {(id, …): number}, or [[[id, …], number], …]
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_decoder_ids: list[list[int]] | None = None
    num_return_sequences: int = 1
    output_attentions: bool = False
    output_hidden_states: bool = False
    output_scores: bool = False
    return_dict_in_generate: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """From a file's content."""
        config = cls()
        config.extra = config.update(**values)
        return config

    @classmethod
    def from_model_config(cls, config: OPTConfig) -> GenerationConfig:
        """From ``config.json``, where older checkpoints keep these fields."""
        values = config.to_dict()
        names = [f.name for f in fields(cls) if f.name != "extra"]
        return cls.from_dict({n: values[n] for n in names if values.get(n) is not None})

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], **changes: Any
    ) -> GenerationConfig:
        """Read a directory's file. Raises ConfigError if it is missing or not JSON."""
        return cls.from_dict(read_json(Path(directory) / FILE) | changes)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the fields that differ from the defaults, atomically."""
        write_json(Path(directory) / FILE, self.to_diff_dict())

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the unknown keys that were read."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(bias := self.sequence_bias, Mapping):  # JSON has no such keys
            values["sequence_bias"] = [[list(ids), x] for ids, x in bias.items()]
        return values.pop("extra") | deepcopy(values)

    def to_diff_dict(self) -> dict[str, Any]:
        """Those that differ from the defaults."""
        plain = GenerationConfig().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in plain or value != plain[name]
        }

    def to_json_string(self) -> str:
        """The file's content."""
        return json.dumps(self.to_diff_dict(), indent=2, sort_keys=True) + "\n"

    def update(self, **values: Any) -> dict[str, Any]:
        """Set the fields among ``values``; returns the rest."""
        names = {f.name for f in fields(self)} - {"extra"}
        for name in names & values.keys():
            setattr(self, name, values.pop(name))
        return values
