"""What ``from_pretrained`` of all four classes has in common: configuration, files, and
whether the weights in them fit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import Weights, open_weights, resolve
from .config import HUB_OPTIONS, OPTConfig
from .generation.config import FILE as GENERATION_FILE
from .generation.config import GenerationConfig
from .weights import Shape, check_weights, weight_shapes

NEEDLESS = (
    *("from_pt", "from_tf", "from_flax", "use_safetensors", "framework"),
    *("resume_download", "trust_remote_code", "low_cpu_mem_usage", "_fast_init"),
    *("proxies", "mirror", "_commit_hash", "_from_auto", "_from_pipeline"),
    *("user_agent", "device_map", "attn_implementation", "torch_dtype", "variant"),
    *("load_weight_prefix", "tf_to_pt_weight_rename", "adapter_kwargs"),
)
"""Options of Transformers that say what this package finds out or does by itself."""

_UPLOAD = (
    *("token", "use_auth_token", "create_pr", "repo_id", "private"),
    *("commit_message", "commit_description", "revision"),
)
"""Options of Transformers' ``save_pretrained`` that matter to an upload alone."""


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint, opened: ``usable`` names those ``expected`` weights that fit."""

    directory: Path
    config: OPTConfig
    weights: Weights
    expected: Mapping[str, Shape]
    usable: frozenset[str]

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        head: bool,
        config: OPTConfig | str | os.PathLike[str] | None = None,
        ignore_mismatched_sizes: bool = False,
        format: str | None = None,
        **options: Any,
    ) -> Pretrained:
        """Open a directory or hub id; no weight is read yet.

        ``options`` are those of :func:`.checkpoints.resolve` and fields of the
        configuration to change; ``config`` may be a path of its own. Raises
        :class:`.checkpoints.CheckpointError` for files that cannot be read,
        :class:`.weights.WeightsError` for weights that do not fit.
        """
        for name in NEEDLESS:
            options.pop(name, None)
        if (token := options.pop("use_auth_token", None)) is not None:
            options.setdefault("token", token)  # its older name
        missing_is_fine = bool(options.pop("ignore_missing", False))
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        directory = resolve(name_or_path, format=format, **hub)
        loaded = _configuration(directory if config is None else config)
        if unknown := sorted(set(options) - loaded.to_dict().keys()):
            raise TypeError(
                f"from_pretrained got {unknown[0]!r}, which is neither an option nor a "
                "field of the configuration"
            )
        if options:
            loaded = OPTConfig.from_dict(loaded.to_dict() | options)
        weights = open_weights(directory, format=format)
        expected = weight_shapes(loaded, head=head)
        usable = check_weights(
            expected,
            {name: weights.shape(name) for name in weights},
            source=weights.source,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            ignore_missing=missing_is_fine,
        )
        if replaced := sorted(expected.keys() - usable):
            warnings.warn(
                "the checkpoint lacks these weights or has them in other sizes; they "
                "start random: " + ", ".join(replaced),
                stacklevel=4,
            )
        return cls(Path(directory), loaded, weights, expected, frozenset(usable))

    def loading_info(self) -> dict[str, list[Any]]:
        """Transformers' ``output_loading_info``, with canonical names."""
        return {
            "missing_keys": [
                name for name in self.expected if name not in self.weights
            ],
            "unexpected_keys": [n for n in self.weights if n not in self.expected],
            "mismatched_keys": [
                (name, self.weights.shape(name), shape)
                for name, shape in self.expected.items()
                if name in self.weights and name not in self.usable
            ],
        }


def _configuration(given: Any) -> OPTConfig:
    """From an object (ours or Transformers') or from a path."""
    if hasattr(given, "to_dict"):
        return OPTConfig.of(given)
    return OPTConfig.from_pretrained(given)


def generation_defaults(checkpoint: Pretrained) -> GenerationConfig | None:
    """What the checkpoint's ``generation_config.json`` says; None without one."""
    directory = Path(checkpoint.directory)
    if not (directory / GENERATION_FILE).is_file():
        return None
    return GenerationConfig.from_pretrained(directory)


def format_to_save(
    format: str | None,
    safe_serialization: bool | None,
    native: str,
    others: Iterable[str],
) -> str:
    """The format that ``save_pretrained`` writes.

    ``safe_serialization`` is Transformers' way to choose: False means the framework's
    ``native`` one. Without any choice it is safetensors. ``others`` are the remaining
    options' names: TypeError for those that Transformers does not have either.
    """
    if unknown := sorted(set(others) - set(_UPLOAD)):
        raise TypeError(f"save_pretrained got {unknown[0]!r}, which is not an option")
    return format or (native if safe_serialization is False else "safetensors")
