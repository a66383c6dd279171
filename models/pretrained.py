"""What ``from_pretrained`` of all four classes has in common: configuration, files, and
whether the weights in them fit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoints import Weights, open_weights, resolve
from .config import HUB_OPTIONS, OPTConfig
from .weights import Shape, check_weights, weight_shapes

_NEEDLESS = (
    *("from_pt", "from_tf", "from_flax", "use_safetensors", "framework"),
    *("resume_download", "trust_remote_code", "low_cpu_mem_usage", "_fast_init"),
)
"""Options of the reference that say what this package finds out or does by itself."""

_UPLOAD = (
    *("token", "create_pr", "repo_id", "private", "commit_message"),
    *("commit_description", "revision", "tags"),
)
"""Options of the reference's ``save_pretrained`` that matter to an upload alone."""


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint, opened: ``usable`` names those ``wanted`` weights that fit."""

    config: OPTConfig
    weights: Weights
    wanted: Mapping[str, Shape]
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

        ``options`` are those of :func:`.files.resolve` and fields of the configuration
        to change; ``config`` may be a path of its own. Raises
        :class:`.files.CheckpointError` for files that cannot be read,
        :class:`.weights.WeightsError` for weights that do not fit.
        """
        for name in _NEEDLESS:
            options.pop(name, None)
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        directory = resolve(name_or_path, format=format, **hub)
        if not isinstance(config, OPTConfig):
            config = OPTConfig.from_pretrained(directory if config is None else config)
        if unknown := sorted(set(options) - config.to_dict().keys()):
            raise TypeError(
                f"from_pretrained got {unknown[0]!r}, which is neither an option nor a "
                "field of the configuration"
            )
        if options:
            config = OPTConfig.from_dict(config.to_dict() | options)
        weights = open_weights(directory, format=format)
        wanted = weight_shapes(config, head=head)
        usable = check_weights(
            wanted,
            {name: weights.shape(name) for name in weights},
            source=weights.source,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        if replaced := sorted(wanted.keys() - usable):
            warnings.warn(
                "these weights have other sizes in the checkpoint and start random: "
                + ", ".join(replaced),
                stacklevel=4,
            )
        return cls(config, weights, wanted, frozenset(usable))

    def loading_info(self) -> dict[str, list[Any]]:
        """The reference's ``output_loading_info``, with canonical names.

        What is missing raises, so nothing is listed there.
        """
        return {
            "missing_keys": [],
            "unexpected_keys": [n for n in self.weights if n not in self.wanted],
            "mismatched_keys": [
                (name, self.weights.shape(name), shape)
                for name, shape in self.wanted.items()
                if name not in self.usable
            ],
        }


def format_to_save(
    format: str | None,
    safe_serialization: bool | None,
    push_to_hub: bool,
    native: str,
    others: Iterable[str],
) -> str:
    """The format that ``save_pretrained`` writes.

    ``safe_serialization`` is the reference's way to choose: False means the framework's
    ``native`` one. Without any choice it is safetensors. ``others`` are the remaining
    options' names: TypeError for those that the reference does not have either.
    """
    if unknown := sorted(set(others) - set(_UPLOAD)):
        raise TypeError(f"save_pretrained got {unknown[0]!r}, which is no option")
    if push_to_hub:
        raise ValueError(
            "push_to_hub is not done here: save, then upload the directory with "
            "huggingface_hub.upload_folder"
        )
    return format or (native if safe_serialization is False else "safetensors")
