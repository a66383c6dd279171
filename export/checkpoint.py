"""A checkpoint opened for export: what both exporters read of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from ..models.checkpoints import Weights, open_weights
from ..models.config import OPTConfig
from ..models.tokenizer import Tokenizer
from ..models.weights import check_weights, weight_shapes
from ..runtime.contract import Manifest
from .options import ExportOptions

_TOOLS = {"tf": ("tensorflow",), "jax": ("tensorflow", "jax", "jaxlib")}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint whose weights fit its configuration.

    ``weights`` are read when asked for, by canonical name. ``tokenizer`` is the text
    of a ``tokenizer.json``, None where the checkpoint has no tokenizer.
    """

    config: OPTConfig
    weights: Weights
    tokenizer: str | None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Checkpoint:
        """Read the configuration and the tokenizer, and look at the weights' shapes.

        Raises:
            ConfigError: no configuration of an OPT model.
            CheckpointError: no weights, or others than the configuration's.
            TokenizerError: a tokenizer that cannot be read.
        """
        folder = Path(folder)
        config = OPTConfig.from_pretrained(folder)
        weights = open_weights(folder)
        shapes = {name: weights.shape(name) for name in weights}
        check_weights(weight_shapes(config), shapes, source=folder)
        names = ("tokenizer.json", "vocab.json")
        tokenizer = None
        if any((folder / name).exists() for name in names):
            tokenizer = Tokenizer.from_directory(folder).to_json()
        return cls(config, weights, tokenizer)

    def manifest(
        self, options: ExportOptions, signatures: list[str], digest: str, **sizes: Any
    ) -> Manifest:
        """The manifest of an export, its files not listed yet.

        Args:
            options: what was asked for.
            signatures: their names; the tokenizer's is added if there is one.
            digest: of the weights.
            sizes: the manifest's lists of sizes.
        """
        config = self.config
        special = {name: getattr(config, name) for name in _SPECIAL_TOKENS}
        return Manifest(
            config=config.to_dict(),
            framework=options.framework,
            compiler=options.compiler or "none",
            weights_dtype=options.weights,
            cache_dtype=options.cache,
            signatures=signatures + ["tokenizer"] * (self.tokenizer is not None),
            max_positions=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            **{name: value for name, value in special.items() if value is not None},
            tokenizer=self.tokenizer is not None,
            checkpoint_digest=digest,
            export_options=options.to_dict(),
            tool_versions={
                name: installed(name)
                for name in ("optserve", *_TOOLS[options.framework])
            },
            **sizes,
        )
