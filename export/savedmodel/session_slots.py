"""Slots for caches in a server's memory, and who holds them; in plain TensorFlow.

The variables are made when a version is loaded and are in no file. That of the rows
starts out as memory that nobody has touched, which a system lends page by page; what
it holds then doesn't matter, for no row is read that its session hasn't written.
"""

from __future__ import annotations

import tensorflow as tf

from ...runtime.contract import CacheLayout
from .server_variables import ServerLock, ServerVariable, untouched


class SessionSlots:
    """``slots`` of ``positions`` rows each, as the wire carries them.

    Rows are written in place. Nothing reads or assigns their variable as a whole, for
    TensorFlow would copy it. Writing a slot and giving it to somebody else exclude
    each other, so what a call writes never lands in the slot's next session.

    Args:
        slots: how many sessions there are at a time.
        positions: how many rows each holds.
        layout: of the rows.
        name: of the variables, which ``resources`` holds; says which export it is,
            for in one process it is one set of variables.
    """

    def __init__(
        self, slots: int, positions: int, layout: CacheLayout, *, name: str
    ) -> None:
        self.slots, self.positions, self.layout = slots, positions, layout
        rows = [slots * positions, *layout.row_shape]
        self._rows = ServerVariable(f"{name}_rows", rows, tf.float32, untouched)
        self._ticket = ServerVariable(f"{name}_ticket", [slots], tf.int64)
        self._used = ServerVariable(f"{name}_used", [slots], tf.int64)
        self._written = ServerVariable(f"{name}_written", [slots], tf.int32)
        self._lock = ServerLock(f"{name}_lock")
        self.resources = {
            "rows": self._rows,
            "ticket": self._ticket,
            "used": self._used,
            "written": self._written,
            "lock": self._lock,
        }
        vector = tf.TensorSpec([None], tf.int32)
        tickets = tf.TensorSpec([None], tf.int64)
        new = tf.TensorSpec([None, None, *layout.row_shape])
        # Functions that several signatures call, stored once.
        self.held = _shared(self._held, vector, tickets, vector)
        self.read = _shared(self._read, vector, vector, vector)
        self.write = _shared(self._write, vector, tickets, new, vector, vector)

    def open(self, numbers):
        """A slot and a ticket for each of ``numbers`` [B]; equal ones get the same, but
        each 0 its own.

        More than there are slots take those of the first ones away again.
        """
        anonymous = tf.int32.max + tf.range(1, tf.size(numbers, tf.int64) + 1)
        keys = tf.where(numbers == 0, anonymous, tf.cast(numbers, tf.int64))
        different, index = tf.unique(keys)
        count = tf.size(different)

        def take():
            used = self._used.at(tf.range(self.slots))
            oldest = tf.argsort(used, stable=True)
            slot = tf.gather(oldest, tf.range(count) % self.slots)
            ticket = _random_tickets(count)
            now = tf.reduce_max(used) + tf.range(1, count + 1, dtype=tf.int64)
            writes = (
                self._ticket.put(slot, ticket),
                self._written.put(slot, tf.zeros_like(slot)),
                self._used.put(slot, now),
            )
            return (slot, ticket), writes

        slot, ticket = self._lock.hold(take)
        return tf.gather(slot, index), tf.gather(ticket, index)

    def is_held(self, slot, ticket):
        """Which rows [B] hold their slot at the moment."""
        known = (slot >= 0) & (slot < self.slots) & (ticket > 0)
        return known & (self._ticket.at(self._known(slot)) == ticket)

    def _held(self, slot, ticket, length):
        """Which rows [B] hold their slot, written to ``length`` [B] at least.

        Their slots count as used just now.
        """
        held = self.is_held(slot, ticket)
        held &= self._written.at(self._known(slot)) >= length
        mine = tf.boolean_mask(slot, held)
        now = tf.reduce_max(self._used.at(tf.range(self.slots))) + 1
        with tf.control_dependencies([self._used.put(mine, now)]):
            return tf.identity(held)

    def _read(self, slot, start, size):
        """Rows [B,C,…] from ``start`` [B] on, C the largest of ``size`` [B].

        What comes after a row's own ``size`` is arbitrary, and so is all of a slot
        that the caller does not hold.
        """
        longest = tf.maximum(tf.reduce_max(size), 0)  # there may be no rows
        at = tf.minimum(tf.range(longest), tf.maximum(size - 1, 0)[:, None])
        return self._rows.at(self._index(self._known(slot), start[:, None] + at))

    def _write(self, slot, ticket, rows, start, count):
        """Put ``count`` [B] of ``rows`` [B,S,…] at ``start`` [B] of slots still held.

        Returns which are held. Of rows of the same slot the first one is put: a batcher
        repeats rows to fill a batch up. What is beyond a slot's end is left out.
        """
        B, S = tf.unstack(tf.shape(rows)[:2])
        at = start[:, None] + tf.range(S)
        end = tf.minimum(start + tf.maximum(count, 0), self.positions)

        def put():
            held = self.is_held(slot, ticket)
            first = held & _first_of_its_kind(tf.where(held, slot, -1))
            which = tf.where((at < end[:, None]) & first[:, None])
            flat = which[:, 0] * tf.cast(S, tf.int64) + which[:, 1]
            new = tf.gather(tf.reshape(rows, [B * S, *rows.shape[2:]]), flat)
            index = tf.gather_nd(self._index(self._known(slot), at), which)
            mine, ends = tf.boolean_mask(slot, first), tf.boolean_mask(end, first)
            written = tf.maximum(self._written.at(mine), ends)
            return (held,), (
                self._rows.put(index, new),
                self._written.put(mine, written),
            )

        return self._lock.hold(put)[0]

    def _known(self, slot):
        return tf.clip_by_value(slot, 0, self.slots - 1)

    def _index(self, slot, at):
        """Where rows ``at`` [B,S] of slots [B] are in the variable, int64."""
        begin = tf.cast(slot, tf.int64) * self.positions
        return begin[:, None] + tf.cast(at, tf.int64)


def _shared(function, *inputs: tf.TensorSpec):
    return tf.function(function, input_signature=inputs, autograph=False)


def _first_of_its_kind(x):
    """Which of ``x`` [B] have no equal before them."""
    row = tf.range(tf.size(x))
    return ~tf.reduce_any((x == x[:, None]) & (row < row[:, None]), axis=1)


def _random_tickets(count):
    """Positive int64 that no other session of any process gets, as good as surely."""
    # Without seeds TensorFlow takes the system's randomness, whatever the program set.
    return tf.raw_ops.RandomUniformInt(
        shape=[count],
        minval=tf.constant(1, tf.int64),
        maxval=tf.int64.max,
        seed=0,
        seed2=0,
    )
