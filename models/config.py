"""The architecture of an OPT checkpoint: its ``config.json`` as a dataclass."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .regular_files import read_regular_file

MODEL_TYPE = "opt"
ACTIVATIONS = ("relu", "gelu")  # "gelu" is the exact one, with erf
POSITION_OFFSET = 2
"""Row of the position table that position 0 reads; padding reads the row before."""

PRESETS: dict[str, dict[str, Any]] = {
    "125m": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
    },
    "350m": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 512,
    },
    "1.3b": {
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "num_attention_heads": 32,
    },
    "2.7b": {
        "num_hidden_layers": 32,
        "hidden_size": 2560,
        "num_attention_heads": 32,
    },
    "6.7b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
    },
    "13b": {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40},
    "30b": {"num_hidden_layers": 48, "hidden_size": 7168, "num_attention_heads": 56},
    "66b": {"num_hidden_layers": 64, "hidden_size": 9216, "num_attention_heads": 72},
    "175b": {"num_hidden_layers": 96, "hidden_size": 12288, "num_attention_heads": 96},
}
"""What distinguishes the published sizes; ``ffn_dim`` is 4 × ``hidden_size`` in all."""


_LARGEST_FILE = 16 * 1024**2  # bytes
_LARGEST_SIZE = 2**31 - 1
_MOST_LAYERS = 10_000
"""A hundred times as many as any published size: each has names and shapes, which are
listed before anything is read or estimated."""


class ConfigError(ValueError):
    """A configuration that describes no OPT model; the message names the field."""


@dataclass(eq=True, init=False)
class OPTConfig:
    """The fields of ``config.json``, with the reference's defaults (OPT-125m).

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
            raise ConfigError(f"model_type should be 'opt', got {_shown(kind)}")
        extra = values.pop("extra", {})
        if not isinstance(extra, dict):
            raise ConfigError(f"extra should be an object, got {_shown(extra)}")
        self.extra = {**extra}
        for name in names:
            setattr(self, name, values.pop(name, getattr(type(self), name)))
        self.extra |= values
        if self.word_embed_proj_dim is None:
            self.word_embed_proj_dim = self.hidden_size
        self.validate()

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is no field. `extra` itself may be asked for before it
        # is set (copy, pickle).
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
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
        """The reference's other name for ``return_dict``."""
        return self.return_dict

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
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "ffn_dim",
            "num_attention_heads",
            "max_position_embeddings",
            "word_embed_proj_dim",
        ):
            _check(
                self,
                name,
                _is_int,
                f"a whole number from 1 to {_LARGEST_SIZE}",
                lambda x: 0 < x <= _LARGEST_SIZE,
            )
        _check(
            self,
            "num_hidden_layers",
            _is_int,
            f"at most {_MOST_LAYERS}",
            lambda x: x <= _MOST_LAYERS,
        )
        for name in ("dropout", "attention_dropout", "layerdrop"):
            _check(self, name, _is_number, "in [0, 1)", lambda x: 0 <= x < 1)
        _check(self, "init_std", _is_number, "0 or more", lambda x: x >= 0)
        for name in _BOOLEANS:
            _check(self, name, lambda x: isinstance(x, bool), "true or false")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None:
                _check(self, name, _is_int, "an integer or null")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"pad_token_id should be below vocab_size {self.vocab_size}, "
                f"got {self.pad_token_id}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function should be one of {', '.join(ACTIVATIONS)}, "
                f"got {_shown(self.activation_function)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> OPTConfig:
        """A published size (a key of :data:`PRESETS`), with ``changes`` on top."""
        key = name.lower().removeprefix("facebook/").removeprefix("opt-")
        if key not in PRESETS:
            raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        values = {**PRESETS[key], "ffn_dim": 4 * PRESETS[key]["hidden_size"]}
        return cls.from_dict({**values, **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> OPTConfig:
        """From ``config.json``'s content; ``changes`` win over it."""
        if not isinstance(values, dict):
            raise ConfigError(
                "the configuration should be a JSON object, "
                f"got {type(values).__name__}"
            )
        return cls(**{**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields, ``model_type``, and the unknown keys that were read."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values.pop("extra") | {"model_type": MODEL_TYPE} | values

    def to_json_string(self) -> str:
        """``config.json``'s content."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def update(self, values: dict[str, Any]) -> None:
        """Change several fields in place. ConfigError, and no change, if they fit no
        model."""
        for name, value in self.from_dict(self.to_dict(), **values).__dict__.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> OPTConfig:
        """Read ``config.json`` from a directory, that file itself, or the hub.

        ``options``: ``revision`` and the like, as
        :func:`optserve.models.checkpoints.resolve` takes them; anything else is a field
        to change.
        """
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        path = Path(pretrained_model_name_or_path)
        if path.exists():
            path /= hub.get("subfolder") or ""
        else:
            from .checkpoints import resolve

            path = resolve(pretrained_model_name_or_path, weights=False, **hub)
        file = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(read_regular_file(file, limit=_LARGEST_FILE))
        except FileNotFoundError:
            raise ConfigError(f"{path} holds no config.json") from None
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file} is not valid JSON: {error}") from None
        return cls.from_dict(values, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into the directory (made if missing), atomically."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = self.to_json_string()
        handle, name = tempfile.mkstemp(dir=directory, prefix=".config-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, directory / "config.json")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


HUB_OPTIONS = (
    "revision",
    "cache_dir",
    "local_files_only",
    "force_download",
    "token",
    "subfolder",
)
"""Options of ``from_pretrained`` that say where to look, on the hub or below it."""

_BOOLEANS = tuple(f.name for f in fields(OPTConfig) if f.type == "bool")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(config: OPTConfig, name, right_type, wanted, right=lambda value: True):
    value = getattr(config, name)
    if not right_type(value) or not right(value):
        raise ConfigError(f"{name} should be {wanted}, got {_shown(value)}")


def _shown(value: object) -> str:
    """A value from a file, for a message: printable and short, whatever it holds."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
