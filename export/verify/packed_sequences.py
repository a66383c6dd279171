"""Sequences one after another, as one row that a model reads at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedSequences:
    """Several sequences in one row; no token sees another sequence's.

    ``tokens``, ``positions`` within its sequence and
    ``owner``, the sequence's number, are int32 [T].
    """

    tokens: np.ndarray
    positions: np.ndarray
    owner: np.ndarray
    begins: dict[bytes, int]

    @classmethod
    def of(cls, sequences: list[np.ndarray]) -> PackedSequences:
        """Of sequences int32 [t]; what another one begins with is read with that."""
        kept: list[np.ndarray] = []
        begins: dict[bytes, int] = {}
        end = 0
        for sequence in sorted(sequences, key=len, reverse=True):
            key = sequence.tobytes()
            if key in begins:
                continue
            whole = next((k for k in kept if k.tobytes().startswith(key)), None)
            if whole is not None:
                begins[key] = begins[whole.tobytes()]
                continue
            kept.append(sequence)
            begins[key] = end
            end += len(sequence)
        lengths = [len(sequence) for sequence in kept]
        return cls(
            tokens=np.concatenate(kept),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            owner=np.repeat(np.arange(len(kept), dtype=np.int32), lengths),
            begins=begins,
        )

    def find(self, sequence: np.ndarray) -> slice:
        """Where one of the sequences stands."""
        begin = self.begins[sequence.tobytes()]
        return slice(begin, begin + len(sequence))

    def mask(self, chunk: slice) -> np.ndarray:
        """Which tokens up to a chunk's end its own ones see: boolean [S,T]."""
        slots = np.arange(len(self.tokens))[: chunk.stop]
        own = self.owner[chunk, None] == self.owner[None, : chunk.stop]
        return own & (slots <= slots[chunk, None])
