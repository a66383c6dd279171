"""Cache rows of prompts seen before, found again by the hash of their token blocks.

A block is ``BLOCK`` tokens and their cache rows. Its hash is that of the block before
it and of its own tokens, and the first block's follows from what the rows come from
(``ServedModel.rows_identity``): equal hashes mean equal tokens from the first one on.
That is vLLM's automatic prefix caching
(https://docs.vllm.ai/en/latest/design/prefix_caching.html), on the client's side.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from hashlib import sha256
from itertools import takewhile

import numpy as np

from ..option_checks import check_whole
from .prefix_files import PrefixFiles

BLOCK = 16
"""Tokens of a block: what is found is a multiple of it, so that on average half of it
is fed again. A block of the 125m model is 1.2 MB, of the 30b model 44 MB."""

Rows = np.ndarray
"""``[BLOCK, L, 2, H, D]`` as they travel (``CacheLayout``); never written to again."""

_MOST_BYTES = 2**63 - 1
_MOST_SIGHTED = 1 << 16  # hashes


class PrefixCache:
    """Blocks of cache rows, the ones used longest ago dropped first.

    One may serve several clients and threads. With a ``folder``, processes share it
    and it survives them: give it to clients of servers that you trust alike, since a
    server's rows become part of the others' answers.

    Args:
        memory_bytes: most bytes of rows in memory.
        folder: where blocks are kept as files as well; created if it isn't there. It
            must be the user's own and closed to others (``chmod 700``).
        folder_bytes: most bytes of files in the folder; the ones used longest ago go
            first.

    Raises:
        InvalidRequest: a size is out of range, or the folder can't be used.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 30,
        folder: str | os.PathLike[str] | None = None,
        folder_bytes: int = 8 << 30,
    ) -> None:
        check_whole("the prefix cache's bytes", memory_bytes, 1, _MOST_BYTES)
        check_whole("the prefix cache's folder_bytes", folder_bytes, 1, _MOST_BYTES)
        self._limit = memory_bytes
        self._files = None if folder is None else PrefixFiles(folder, folder_bytes)
        self._blocks: OrderedDict[bytes, Rows] = OrderedDict()
        self._bytes = 0
        self._sighted: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def memory_used(self) -> int:
        """Bytes of rows in memory."""
        with self._lock:
            return self._bytes

    def find(self, hashes: Sequence[bytes]) -> list[Rows]:
        """The rows of the first blocks, as far as memory has them one after another."""
        known: list[Rows] = []
        with self._lock:
            for block in hashes:
                if (rows := self._blocks.get(block)) is None:
                    break
                known.append(rows)
            # The first block last: without it, the others would not be found.
            for block in reversed(hashes[: len(known)]):
                self._blocks.move_to_end(block)
        return known

    def load(
        self, hashes: Sequence[bytes], shape: tuple[int, ...]
    ) -> Future[list[Rows]] | None:
        """The rows of the first blocks that the folder has, read in the background.

        None without a folder. ``shape`` is that of one block's rows.
        """
        return None if self._files is None else self._files.load(hashes, shape)

    def keep(self, blocks: Mapping[bytes, Rows], *, save: bool = True) -> None:
        """Remember blocks that follow each other, first to last.

        ``save`` also writes them to the folder, soon.
        """
        with self._lock:
            for block, rows in reversed(list(blocks.items())):  # as in ``find``
                before = self._blocks.pop(block, None)
                self._blocks[block] = rows
                self._bytes += rows.nbytes - (0 if before is None else before.nbytes)
            while self._bytes > self._limit:
                _, oldest = self._blocks.popitem(last=False)
                self._bytes -= oldest.nbytes
        if save and self._files is not None:
            for block, rows in blocks.items():
                self._files.save(block, rows)

    def has(self, block: bytes) -> bool:
        """Whether memory has a block."""
        with self._lock:
            return block in self._blocks

    def sighted(self, hashes: Sequence[bytes]) -> int:
        """How many of the first blocks were named here before; all are from now on.

        Rows that cost something to get are worth it where prompts have them in common.
        """
        with self._lock:
            known = list(takewhile(self._sighted.__contains__, hashes))
            for block in hashes:
                self._sighted[block] = None
                self._sighted.move_to_end(block)
            while len(self._sighted) > _MOST_SIGHTED:
                self._sighted.popitem(last=False)
            return len(known)

    def holds(self, block_bytes: int) -> int:
        """Most blocks of so many bytes that fit in memory."""
        return self._limit // block_bytes

    def close(self) -> None:
        """Write what waits to be written, and let go of the rows and the folder."""
        if self._files is not None:
            self._files.close()
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def __enter__(self) -> PrefixCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def as_prefix_cache(given: int | PrefixCache | None) -> PrefixCache | None:
    """A client's argument: a cache, the bytes of one in memory, or none.

    Raises:
        InvalidRequest: something else.
    """
    if given is None or isinstance(given, PrefixCache):
        return given
    return PrefixCache(memory_bytes=given)


def block_hashes(identity: str, tokens: Sequence[int]) -> list[bytes]:
    """The hash of each whole block of ``tokens``, in order."""
    hashes, last = [], sha256(identity.encode()).digest()
    whole = len(tokens) // BLOCK * BLOCK
    ids = np.asarray(tokens[:whole], "<i4").reshape(-1, BLOCK)
    for block in ids:
        last = sha256(last + block.tobytes()).digest()
        hashes.append(last)
    return hashes
