"""The architecture of an OPT checkpoint: its ``config.json`` as a dataclass."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .config_checks import ConfigError, check_fields, shown
from .json_files import read_json, write_json
from .presets import PRESETS
from .push import Pushes, push_folder

MODEL_TYPE = "opt"
POSITION_OFFSET = 2
"""Row of the position table that position 0 reads; padding reads the row before."""


@dataclass(eq=True, init=False)
class OPTConfig(Pushes):
    """The fields of ``config.json``, with the defaults of Transformers (OPT-125m).

    They are given by name, or by position in this order. A key that is not a field is
    kept in ``extra``, readable and writable as an attribute, and written back. Raises
    :class:`ConfigError` for values that fit no model.
    """

    model_type: ClassVar[str] = MODEL_TYPE

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None  # becomes hidden_size
    dropout: float = 0.1
    attention_dropout: float = 0.0
    num_attention_heads: int = 12
    activation_function: str = "relu"
    layerdrop: float = 0.0
    init_std: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | None = 2
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __init__(self, /, *args: Any, **values: Any) -> None:
        names = [f.name for f in fields(self)][:-1]
        if len(args) > len(names) or set(names[: len(args)]) & values.keys():
            raise TypeError(
                f"OPTConfig takes {', '.join(names)}, each at most once; "
                f"got {len(args)} by position and {', '.join(values)}"
            )
        values |= dict(zip(names, args, strict=False))
        kind = values.pop("model_type", MODEL_TYPE)
        if kind != MODEL_TYPE:
            raise ConfigError(f"model_type should be 'opt', got {shown(kind)}")
        extra = values.pop("extra", {})
        if not isinstance(extra, dict):
            raise ConfigError(f"extra should be an object, got {shown(extra)}")
        self.extra = {**extra}
        if "torch_dtype" in values:  # "float16", also as torch.float16
            values["torch_dtype"] = _dtype_name(values["torch_dtype"])
        for name in names:
            setattr(self, name, values.pop(name, getattr(type(self), name)))
        count = values.pop("num_labels", None)
        self.extra |= values
        if count is not None and "id2label" not in values:
            self.num_labels = count
        if self.word_embed_proj_dim is None:
            self.word_embed_proj_dim = self.hidden_size
        self.validate()

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is not a field. `extra` itself may be asked for before
        # it is set (copy, pickle).
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        if name in _ASKED_FOR:
            return deepcopy(_ASKED_FOR[name])
        raise AttributeError(f"OPTConfig has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "extra" or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            self.extra[name] = value

    def __hash__(self) -> int:
        # Consistent with ==: a model's configuration may be changed in place, and then
        # what was compiled for the old one must not be found again.
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=str))

    @property
    def head_dim(self) -> int:
        """D, the size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embed_dim(self) -> int:
        """The token embedding's width: ``word_embed_proj_dim``."""
        return self.word_embed_proj_dim or self.hidden_size

    @property
    def use_return_dict(self) -> bool:
        """Transformers' other name for ``return_dict``."""
        return self.return_dict

    @property
    def num_labels(self) -> int:
        """How many names :attr:`id2label` has."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.extra["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        self.extra["label2id"] = {f"LABEL_{i}": i for i in range(count)}

    @property
    def id2label(self) -> dict[int, str]:
        """Names of labels; OPT's classes here use none."""
        names = self.extra.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return {int(i): name for i, name in names.items()}

    @id2label.setter
    def id2label(self, names: Mapping[int, str]) -> None:
        self.extra["id2label"] = {str(i): name for i, name in names.items()}
        self.extra["label2id"] = {name: int(i) for i, name in names.items()}

    @property
    def label2id(self) -> dict[str, int]:
        """The reverse of :attr:`id2label`."""
        return {name: i for i, name in self.id2label.items()}

    @property
    def has_projections(self) -> bool:
        """Whether embeddings are projected to and from ``hidden_size``."""
        return self.embed_dim != self.hidden_size

    @property
    def has_dropout(self) -> bool:
        """Whether training drops anything at random, layers included."""
        return bool(self.dropout or self.attention_dropout or self.layerdrop)

    @property
    def has_final_norm(self) -> bool:
        """Whether a LayerNorm follows the last layer: pre-LN models, unless removed."""
        return self.do_layer_norm_before and not self._remove_final_layer_norm

    def validate(self) -> None:
        """Raise :class:`ConfigError` naming the first field that fits no model."""
        check_fields(vars(self))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> OPTConfig:
        """A published size (a key of :data:`PRESETS`), with ``changes`` on top."""
        key = name.lower().removeprefix("facebook/").removeprefix("opt-")
        if key not in PRESETS:
            raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        values = {**PRESETS[key], "ffn_dim": 4 * PRESETS[key]["hidden_size"]}
        return cls.from_dict({**values, **changes})

    @classmethod
    def of(cls, config: Any) -> OPTConfig:
        """``config`` itself, or an OPTConfig like one of Transformers' objects."""
        return config if isinstance(config, OPTConfig) else cls(**config.to_dict())

    @classmethod
    def from_dict(
        cls,
        values: dict[str, Any],
        *,
        return_unused_kwargs: bool = False,
        **changes: Any,
    ) -> Any:
        """From ``config.json``'s content; ``changes`` win over it.

        With ``return_unused_kwargs`` ``(config, rest)``: changes of what the
        configuration has no such key for stay in the rest.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                "the configuration should be a JSON object, "
                f"got {type(values).__name__}"
            )
        if not return_unused_kwargs:
            return cls(**{**values, **changes})
        known = {f.name for f in fields(cls)} | values.keys()
        rest = {name: v for name, v in changes.items() if name not in known}
        used = {name: v for name, v in changes.items() if name in known}
        return cls(**{**values, **used}), rest

    def to_dict(self) -> dict[str, Any]:
        """All fields, ``model_type``, and the unknown keys that were read."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values.pop("extra") | {"model_type": MODEL_TYPE} | values

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from the defaults, and ``model_type``."""
        plain = OPTConfig().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "model_type" or name not in plain or value != plain[name]
        }

    def to_json_string(self, use_diff: bool = False) -> str:
        """``config.json``'s content; all fields unless ``use_diff``."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(
        self, json_file_path: str | os.PathLike[str], use_diff: bool = False
    ) -> None:
        """Write :meth:`to_json_string` into a file, atomically."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        write_json(Path(json_file_path), values)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> OPTConfig:
        """Read a file. Raises ConfigError unless it is a configuration."""
        return cls.from_dict(read_json(Path(json_file)))

    def update(self, values: dict[str, Any]) -> None:
        """Change several fields in place. ConfigError, and no change, if they fit no
        model."""
        for name, value in self.from_dict(self.to_dict(), **values).__dict__.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: bool = False,
        **options: Any,
    ) -> Any:
        """Read ``config.json`` from a directory, that file itself, or the hub.

        ``options``: ``revision`` and the like, as
        :func:`optserve.models.checkpoints.resolve` takes them; anything else is a field
        to change. ``return_unused_kwargs`` gives ``(config, rest)`` instead, where what
        the configuration has no such key for stays in the rest.
        """
        values, options = cls.get_config_dict(pretrained_model_name_or_path, **options)
        if not return_unused_kwargs:
            return cls.from_dict(values, **options)
        return cls.from_dict(values, return_unused_kwargs=True, **options)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of ``config.json``, and the ``options`` that don't say where."""
        for name in _IGNORED:
            options.pop(name, None)
        if (token := options.pop("use_auth_token", None)) is not None:
            options.setdefault("token", token)
        file = cls._find(pretrained_model_name_or_path, options)
        return read_json(file), options

    @classmethod
    def _find(cls, name: str | os.PathLike[str], options: dict[str, Any]) -> Path:
        """The file; takes out of ``options`` what says where to look."""
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        path = Path(name)
        if path.exists():
            path /= hub.get("subfolder") or ""
        else:
            from .checkpoints import resolve

            path = resolve(name, weights=False, **hub)
        return path / "config.json" if path.is_dir() else path

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write ``config.json`` into the directory (created if missing), atomically.

        ``push_to_hub`` uploads the directory to ``repo_id``, by default its name.
        """
        write_json(Path(save_directory) / "config.json", self.to_dict())
        if push_to_hub:
            name = options.pop("repo_id", None) or Path(save_directory).name
            push_folder(save_directory, name, **options)


_IGNORED = ("proxies", "mirror", "_commit_hash", "_from_auto", "_from_pipeline")
"""Options of Transformers' ``from_pretrained`` that change nothing here."""

_ASKED_FOR: dict[str, Any] = {
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "name_or_path": "",
    "_commit_hash": None,
    "prefix": None,
    "torch_dtype": None,
    "pruned_heads": {},
    "problem_type": None,
    "task_specific_params": None,
    "architectures": None,
    "attribute_map": {},
    "keys_to_ignore_at_inference": ["past_key_values"],
    "_attn_implementation": "eager",
    "chunk_size_feed_forward": 0,
    "tie_encoder_decoder": False,
    **dict.fromkeys(("tokenizer_class", "sep_token_id", "decoder_start_token_id")),
    # Fields of the generation configuration, which older code sets and reads here.
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id")),
    "output_scores": False,
    "return_dict_in_generate": False,
}
"""Attributes that every configuration of Transformers has, whatever its file has."""

HUB_OPTIONS = (
    "revision",
    "cache_dir",
    "local_files_only",
    "force_download",
    "token",
    "subfolder",
)
"""Options of ``from_pretrained`` that say where to look, on the hub or below it."""


def _dtype_name(value: Any) -> str | None:
    """``float16`` of ``"float16"``, ``"torch.float16"`` or the object itself."""
    return None if value is None else str(value).removeprefix("torch.")
