"""What an export is asked for: one frozen value from the command line to the manifest.

The process that writes gets it as JSON, and the manifest keeps it, so that the same
export can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..runtime.contract import CACHE_DTYPES, INT32_LIMIT, WEIGHT_DTYPES
from .errors import ExportError

TARGETS = ("savedmodel", "tflite")
FRAMEWORKS = ("tf", "jax")
COMPILERS = ("none", "xla")
WEIGHTS = {
    "savedmodel": (*WEIGHT_DTYPES, "int4"),
    "tflite": ("float32", "float16", "int8", "int4"),
}
"""Dtypes of the stored matrices that each target takes."""
ACTIVATIONS = ("auto", "int8", "int16")
TUNED_FOR = ("any", "this-processor")
GENERATE = (1, 8, 32)
SESSION_SLOTS = 1024

_SIZES = ("generate", "prompt_buckets", "batch_sizes")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The choices of an export; None leaves one to the exporter.

    Args:
        target: ``"savedmodel"``, or ``"tflite"`` for LiteRT.
        framework: whose graph or math is exported, ``"tf"`` or ``"jax"``.
        compiler: ``"none"`` or ``"xla"``; None becomes what the framework can do on a
            stock server (``none`` for tf; jax always needs XLA). Not for ``tflite``.
        weights: dtype of the stored matrices, one of ``WEIGHTS[target]``.
        cache: dtype of the cache's numbers, one of ``CACHE_DTYPES``.
        activations: what int8 weights are multiplied with: ``"int16"``, ``"int8"``
            (half the work, for prompts and batches), or ``"auto"``, which takes int8
            where it costs next to nothing on a text. Only int8 SavedModels choose.
        calibrate: the file of that text, from which the scales for int8 come, too;
            None for one of the package's own.
        generate: the N of the ``generate_{N}`` signatures, ascending; may be empty.
            Not for ``tflite``, which has no such signature.
        prompt_buckets: ``jax``: sizes of S to compile for; the graph rounds up to them
            by itself, so that clients need not. ``tflite``: the S of ``prefill_{S}``;
            the runtime packs the weights in memory once for each.
        batch_sizes: sizes of B to compile for, where a compiler is at work.
        cache_size: ``tflite``: C, the tokens that the cache holds.
        sessions: how many caches the server keeps in slots of its own, with a signature
            ``session_…`` for all that is done with them; 0 for none. Not for
            ``tflite``.
        session_slots: how many tokens each of them holds, at most the model's
            positions.
        portable: leave out the int8 kernels that TensorFlow has on x86-64 alone, which
            only int8 weights have; ``jax``: have programs of JAX alone compute.
        tuned_for: ``"any"`` processor: the graph finds out about it when it is loaded,
            and holds the ways for each answer; or ``"this-processor"``: the answers of
            this one are a part of the graph, which others that can't do as much refuse
            to load. Only int8 and bfloat16 weights ask.
        compile_for_this_processor: keep in the version what XLA compiles, for servers
            with the same processor and TensorFlow; others compile as ever.

    Raises:
        ExportError: values that are unknown or exclude each other.
    """

    target: str = "savedmodel"
    framework: str = "tf"
    compiler: str | None = None
    weights: str = "float32"
    cache: str = "float32"
    activations: str = "auto"
    calibrate: str | None = None
    generate: Sequence[int] = GENERATE
    prompt_buckets: Sequence[int] | None = None
    batch_sizes: Sequence[int] | None = None
    cache_size: int | None = None
    sessions: int = 0
    session_slots: int = SESSION_SLOTS
    portable: bool = False
    tuned_for: str = "any"
    compile_for_this_processor: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            if (sizes := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(sizes))
        _check_known("target", self.target, TARGETS)
        _check_known("framework", self.framework, FRAMEWORKS)
        known = WEIGHTS[self.target]
        _check_known("weights", self.weights, known, f" with --target {self.target}")
        _check_known("cache", self.cache, CACHE_DTYPES)
        _check_known("activations", self.activations, ACTIVATIONS)
        _check_known("tuned-for", self.tuned_for, TUNED_FOR)
        if self.target == "tflite":
            self._check_tflite()
        if self.compiler is None:
            compiled = self.framework == "jax" and self.target == "savedmodel"
            object.__setattr__(self, "compiler", "xla" if compiled else "none")
        self._check_compiler()
        self._check_effect()
        self._check_sessions()
        for name in _SIZES:
            if (sizes := getattr(self, name)) is not None:
                check_sizes(f"--{name.replace('_', '-')}", sizes)

    @property
    def multiplies_int8(self) -> bool:
        """Whether the export has kernels for products of int8 weights."""
        savedmodel = self.target == "savedmodel"
        return savedmodel and self.weights == "int8" and not self.portable

    @property
    def programs_alone(self) -> bool:
        """Whether programs of JAX compute everything, and plain ops nothing."""
        return self.framework == "jax" and (self.portable or self.weights == "int4")

    def check_positions(self, positions: int) -> None:
        """Compare the tokens of one call with a model's positions.

        Raises:
            ExportError: they are more.
        """
        if self.generate != GENERATE:  # the default does for small models, too
            check_sizes("--generate", self.generate, positions)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExportOptions:
        """Read :meth:`to_dict`'s data.

        Raises:
            ExportError: an unknown option, or values as above.
        """
        unknown = data.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ExportError(f"no export option is called {', '.join(unknown)}")
        return cls(**data)

    @classmethod
    def from_json(cls, text: str) -> ExportOptions:
        """Read :meth:`to_json`'s text."""
        return cls.from_dict(json.loads(text))

    def _check_tflite(self) -> None:
        if self.compiler == "xla" or self.cache != "float32":
            raise ExportError(
                "--target tflite takes neither --compiler xla nor --cache: "
                "leave them out"
            )

    def _check_compiler(self) -> None:
        _check_known("compiler", self.compiler, COMPILERS)
        needs_xla = self.framework == "jax" and self.target == "savedmodel"
        if needs_xla and self.compiler == "none":
            raise ExportError(
                "a JAX graph runs only with XLA: leave --compiler out, or export with "
                "--framework tf for a server without XLA"
            )

    def _check_sessions(self) -> None:
        if self.sessions and self.target == "tflite":
            raise ExportError("a TFLite file has no sessions: no --sessions")
        sessions, slots = self.sessions, self.session_slots
        if not (0 <= sessions <= INT32_LIMIT and 1 <= slots <= INT32_LIMIT):
            raise ExportError(
                "--sessions should be 0 or more and --session-slots 1 or more, at most "
                f"{INT32_LIMIT}, got {sessions} and {slots}"
            )
        if self.session_slots != SESSION_SLOTS and not self.sessions:
            raise ExportError("--session-slots is for --sessions: give both or none")

    def _check_effect(self) -> None:
        """Refuse what would change nothing about this export."""
        edge, compiled = self.target == "tflite", self.compiler == "xla"
        if edge and tuple(self.generate) != GENERATE:
            raise ExportError("a TFLite file has no generate signature: no --generate")
        for option, given in (
            ("activations", self.activations != "auto"),
            ("calibrate", self.calibrate is not None),
        ):
            if given and not self.multiplies_int8:
                raise ExportError(
                    f"--{option} is for --weights int8 of a SavedModel, without "
                    "--portable: leave it out"
                )
        if self.weights == "int4" and self.framework != "jax" and not edge:
            raise ExportError(
                "--weights int4 of a SavedModel is for --framework jax, since "
                "TensorFlow's own kernels multiply no int4: add that, or take "
                "--weights int8"
            )
        asks = self.weights in ("int8", "bfloat16") and not self.programs_alone
        if self.tuned_for != "any" and (edge or not asks):
            raise ExportError(
                "--tuned-for is for a SavedModel with --weights int8 or bfloat16, with "
                "--framework jax not for --portable: leave it out"
            )
        if self.calibrate is not None and self.activations == "int16":
            raise ExportError("--calibrate is for int8 activations: leave it out")
        if self.cache_size is not None and not edge:
            raise ExportError("--cache-size is for --target tflite: leave it out")
        if self.compile_for_this_processor and not compiled:
            raise ExportError(
                "--compile-for-this-processor is for a compiled export: choose "
                "--compiler xla or --framework jax, or leave it out"
            )
        if self.batch_sizes is not None and not compiled:
            raise ExportError(
                "--batch-sizes is for a compiled export: choose --compiler xla or "
                "--framework jax, or leave it out"
            )
        if self.prompt_buckets is not None and not edge and self.framework != "jax":
            raise ExportError(
                "--prompt-buckets is for --framework jax and --target tflite: leave it "
                "out"
            )


def check_sizes(option: str, sizes: Sequence[int], limit: int | None = None) -> None:
    """Refuse sizes that are not ascending whole numbers from 1 to ``limit``.

    Raises:
        ExportError: they are not.
    """
    if list(sizes) != sorted(set(sizes)) or min(sizes, default=1) < 1:
        raise ExportError(
            f"{option} should be ascending numbers from 1 on, got {list(sizes)}"
        )
    if limit is not None and max(sizes, default=0) > limit:
        raise ExportError(
            f"{option} should stay within the model's {limit} positions, "
            f"got {sizes[-1]}"
        )


def _check_known(
    option: str, value: object, known: Sequence[str], where: str = ""
) -> None:
    if value not in known:
        raise ExportError(
            f"--{option} should be one of {', '.join(known)}{where}, got {value!r}"
        )
