"""A ``.tflite`` export in this process. Needs ``optserve[edge]``, no TensorFlow.

One row at a time. The model's keys and values are tensors that live as long as the
transport, one pair for each layer, ``[1, H, C, D]``. A call writes into them only the
rows that are not there yet: for a growing conversation that is one token's.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import RowBlocks, Tensor
from ..contract import Manifest
from ..errors import (
    Cancelled,
    IncompatibleModel,
    InvalidRequest,
    PromptTooLong,
    ServerError,
)
from ..memory import on_huge_pages
from .base import Call, Reply, Transport, check_call
from .litert_file import find_file, read_manifest

_MOST_THREADS = 4
_STEPWISE = 16  # a prompt below S / 16 tokens is sooner done token by token


class LiteRTTransport(Transport):
    """Runs the signatures of one ``.tflite`` file.

    A call that runs can't be interrupted: its ``timeout`` is checked by the next one.

    Args:
        path: the file, the folder it is in, or an export's base folder.
        threads: threads inside one operation; None takes the processors, at most 4.

    Raises:
        InvalidRequest: no such file.
        IncompatibleModel: no model of this package, or cut short.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None
    ) -> None:
        file, self._version = find_file(Path(path))
        manifest = read_manifest(file)
        self._texts = {"describe": {"manifest": manifest.to_json()}}
        tokenizer = file.parent / "tokenizer.json"
        if manifest.tokenizer and tokenizer.is_file():
            text = tokenizer.read_text(encoding="utf-8")
            self._texts["tokenizer"] = {"tokenizer": text}
        self._model: _Model | None = _Model(file, manifest, threads)
        self._lock = threading.Lock()

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call; ``decode`` with several tokens continues in one go."""
        begin = time.perf_counter()
        check_call(call, self._version, ("prefill", "decode", *self._texts))
        with self._lock:
            if self._model is None:
                raise Cancelled("this transport is closed")
            if (texts := self._texts.get(call.signature)) is not None:
                outputs = {k: np.array([v], object) for k, v in texts.items()}
            else:
                outputs = self._model.run(call.inputs)
        seconds = time.perf_counter() - begin
        return Reply(outputs, version=self._version, seconds=seconds, target="litert")

    def close(self) -> None:
        """Let go of the model."""
        with self._lock:
            self._model = None


class _Model:
    """The runtime with the file loaded, and the rows that its tensors hold."""

    def __init__(self, file: Path, manifest: Manifest, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        layout = manifest.cache_layout
        self._layers, _, self._heads, self._width = layout.row_shape
        self._vocabulary = manifest.vocab_size
        threads = threads or min(_MOST_THREADS, os.cpu_count() or 1)
        try:
            with on_huge_pages():  # the weights, packed for each signature
                self._runtime = Interpreter(model_path=str(file), num_threads=threads)
                self._runtime.allocate_tensors()
            # Runners are dropped again: the runtime refuses to run while one is held.
            decode = self._runtime.get_signature_runner("decode")
            details, outputs = decode.get_input_details(), decode.get_output_details()
            del decode
            self._prefills = sorted(
                int(name.removeprefix("prefill_"))
                for name in self._runtime.get_signature_list()
                if name.startswith("prefill_")
            )
            self._slots = int(details["key_0"]["shape"][2])
            self._outputs = {k: d["index"] for k, d in outputs.items()}
        except (ValueError, RuntimeError, KeyError) as error:
            text = " ".join(str(error).split())[:300]
            raise IncompatibleModel(
                f"this version of ai-edge-litert cannot run {file}: {text}"
            ) from None
        # Functions, not views: the runtime refuses to run while a view is held.
        tensor = self._runtime.tensor
        self._inputs = {k: tensor(d["index"]) for k, d in details.items()}
        self._caches = [
            (self._inputs[f"key_{i}"], self._inputs[f"value_{i}"])
            for i in range(self._layers)
        ]
        for key, value in self._caches:
            # Masked slots count 0 times what is in them, which must not be NaN.
            key()[:] = value()[:] = 0
        self._held: list[tuple[weakref.ref[Any], int, int]] = []

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Feed one row's new tokens after its cache: ``decode``'s outputs."""
        ids, start = self._checked(inputs)
        self._load(inputs.get("cache"), start)
        S = min((s for s in self._prefills if s >= len(ids)), default=0)
        if len(ids) == 1 or len(ids) <= S // _STEPWISE or not S:
            return self._feed_one_by_one(ids, start)
        return self._feed(ids, start, S)

    def _checked(self, inputs: Mapping[str, Tensor]) -> tuple[np.ndarray, int]:
        """The new tokens and how many the cache holds, both possible."""
        ids = np.asarray(inputs["input_ids"])
        if ids.ndim != 2 or ids.shape[0] != 1:
            raise InvalidRequest(
                f"a TFLite model takes one row at a time, got input_ids {ids.shape}"
            )
        fed = int(np.asarray(inputs["input_length"])[0])
        start = int(np.asarray(inputs.get("cache_length", [0]))[0])
        if not 1 <= fed <= ids.shape[1] or start < 0:
            raise InvalidRequest(
                f"input_length should be 1 to {ids.shape[1]}, got {fed}, and "
                f"cache_length 0 or more, got {start}"
            )
        if start > self._slots:
            raise PromptTooLong(
                f"the model's cache has {self._slots} slots, got {start} tokens in it: "
                "export with a larger --cache-size"
            )
        largest = max(self._prefills, default=1)
        if fed > largest or start + fed > self._slots + 1:
            raise PromptTooLong(
                f"{fed} new tokens after {start} cached ones: the model takes "
                f"{largest} at a time and {self._slots + 1} in all; export with larger "
                "--prompt-buckets or a larger --cache-size"
            )
        ids = ids[0, :fed].astype(np.int32)
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            raise InvalidRequest(
                f"token ids should be 0 to {self._vocabulary - 1}, got "
                f"{int(ids.min())} to {int(ids.max())}"
            )
        return ids, start

    def _load(self, cache: Tensor | None, length: int) -> None:
        """Have the first ``length`` slots hold the rows of ``cache``.

        Blocks of a ``RowBlocks`` grow at their end only, so of a block seen before
        only what it has grown by is written.
        """
        blocks = _blocks(cache, length, (self._layers, 2, self._heads, self._width))
        tracked = isinstance(cache, RowBlocks)
        start = self._known(blocks) if tracked else 0
        self._held.clear()
        seen = 0
        for block in blocks:
            fresh = block[max(start - seen, 0) :]
            if len(fresh):
                self._write(seen + len(block) - len(fresh), fresh)
            seen += len(block)
        if tracked:
            self._held = [
                (weakref.ref(_owner(b)), b.ctypes.data, len(b)) for b in blocks
            ]

    def _known(self, blocks: Sequence[np.ndarray]) -> int:
        """How many of the first rows the tensors hold already."""
        known = 0
        for block, (owner, address, length) in zip(blocks, self._held, strict=False):
            if owner() is not _owner(block) or address != block.ctypes.data:
                break
            known += min(length, len(block))
            if len(block) != length:
                break
        return known

    def _write(self, slot: int, rows: np.ndarray) -> None:
        """Rows ``[n, L, 2, H, D]`` into the slots from ``slot`` on."""
        end = slot + len(rows)
        for i, (key, value) in enumerate(self._caches):
            key()[0, :, slot:end] = rows[:, i, 0].swapaxes(0, 1)
            value()[0, :, slot:end] = rows[:, i, 1].swapaxes(0, 1)

    def _feed_one_by_one(self, ids: np.ndarray, start: int) -> dict[str, np.ndarray]:
        rows = []
        for position, token in enumerate(ids, start):
            if rows:
                self._write(position - 1, rows[-1][0])
            self._inputs["input_ids"]()[0, 0] = token
            self._inputs["cache_length"]()[0] = position
            self._invoke(self._runtime.invoke)
            rows.append(self._runtime.get_tensor(self._outputs["new_cache"]))
        logits = self._runtime.get_tensor(self._outputs["logits"])
        new_cache = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
        return {"logits": logits, "new_cache": new_cache}

    def _feed(self, ids: np.ndarray, start: int, S: int) -> dict[str, np.ndarray]:
        padded = np.zeros((1, S), np.int32)
        padded[0, : len(ids)] = ids
        prefill = self._runtime.get_signature_runner(f"prefill_{S}")
        inputs = {name: view() for name, view in self._inputs.items()}
        inputs |= {
            "input_ids": padded,
            "input_length": np.array([len(ids)], np.int32),
            "cache_length": np.array([start], np.int32),
        }
        return self._invoke(lambda: prefill(**inputs))

    def _invoke(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise ServerError(f"LiteRT failed: {text}", "INTERNAL") from None


def _blocks(
    cache: Tensor | None, length: int, row_shape: tuple[int, ...]
) -> list[np.ndarray]:
    """The first ``length`` rows of a cache of one sequence, in order."""
    if cache is None or not length:
        return []
    rows = cache.rows[0] if isinstance(cache, RowBlocks) else (np.asarray(cache)[0],)
    blocks, missing = [], length
    for block in rows:
        if block.shape[1:] != row_shape or block.dtype != np.float32:
            raise InvalidRequest(
                f"the cache's rows should be float32 {row_shape}, got {block.dtype} "
                f"{block.shape[1:]}: is it another model's?"
            )
        if len(block := block[:missing]):
            blocks.append(block)
            missing -= len(block)
    if missing:
        raise InvalidRequest(
            f"cache_length is {length}, the cache has {length - missing} rows"
        )
    return blocks


def _owner(array: np.ndarray) -> Any:
    """The array whose memory a view shows."""
    return array if array.base is None else array.base
