"""Variables and locks that a server makes when it loads a version; in no file.

A ``tf.Variable`` would be saved: gigabytes of zeros for a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

TrackableResource = tf.saved_model.experimental.TrackableResource


class ServerVariable(TrackableResource):
    """A variable of rows that are read and written by index, in place.

    Nothing may read or assign it as a whole once it is in use: TensorFlow would copy
    it.

    Args:
        name: in one process it is one variable, so it says which export it is of.
        shape: the first axis is the rows'.
        dtype: of the numbers.
        initial: ``tf.zeros``, or :func:`untouched`.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: tf.DType,
        initial: Callable[..., Any] = tf.zeros,
    ) -> None:
        super().__init__()
        self._name, self._shape, self._dtype = name, list(shape), dtype
        self._initial = initial
        with tf.init_scope():  # not in the branch of a graph that asks first
            _ = self.resource_handle

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(
            dtype=self._dtype, shape=self._shape, shared_name=self._name
        )

    def _initialize(self):
        value = self._initial(self._shape, self._dtype)
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)

    def at(self, index):
        """A copy of the rows at ``index``, of any shape."""
        rows = tf.raw_ops.ResourceGather(
            resource=self.resource_handle, indices=index, dtype=self._dtype
        )
        return tf.ensure_shape(rows, [*index.shape, *self._shape[1:]])

    def put(self, index, rows):
        """Write ``rows`` at ``index`` [n], in place; of equal ones the last stays."""
        return tf.raw_ops.ResourceScatterUpdate(
            resource=self.resource_handle, indices=index, updates=rows
        )


def untouched(shape: Sequence[int], dtype: tf.DType):
    """Memory as the system lends it: pages are resident once they are written.

    Its values are arbitrary.
    """
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)


class ServerLock(TrackableResource):
    """A lock that a graph holds while it does something.

    ``name`` says which export it is of: in one process it is one lock.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        with tf.init_scope():
            _ = self.resource_handle

    def _create_resource(self):
        return tf.raw_ops.MutexV2(shared_name=self._name)

    def hold(self, work: Callable[[], tuple[Any, Sequence[tf.Operation]]]) -> Any:
        """The tensors that ``work()`` gave, with the operations it did while locked."""
        lock = tf.raw_ops.MutexLock(mutex=self.resource_handle)
        with tf.control_dependencies([lock]):
            tensors, operations = work()
        with tf.control_dependencies([*tf.nest.flatten(tensors), *operations]):
            # The lock is free when nobody refers to it any more.
            released = tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
        with tf.control_dependencies([released]):
            return tf.nest.map_structure(tf.identity, tensors)
