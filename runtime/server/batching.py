"""Dynamic batching of concurrent requests, after TensorFlow Serving's session for it.

Requests for the same signature and outputs join one batch along axis 0. No threads of
its own: the thread of a batch's first request runs the batch, so that a request that
finds nothing queued runs at once, as if there were no batching.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from ..contract import MESSAGE_LIMIT
from .batch_tensors import batch_rows, concatenate, joined_bytes, split
from .servable import Servable, Signature
from .serving_error import ServingError, internal, invalid_argument
from .settings import BatchingParameters

Key = tuple[int, str, tuple[str, ...]]


@dataclass(eq=False)
class _Task:
    """One request; its thread waits on ``changed`` until it has a result or leads."""

    inputs: Mapping[str, np.ndarray]
    rows: int
    changed: threading.Condition
    batch: _Batch | None = None
    leads: bool = False
    outputs: list[np.ndarray] | None = None
    error: ServingError | None = None

    @property
    def done(self) -> bool:
        return self.outputs is not None or self.error is not None


@dataclass(eq=False)
class _Batch:
    """Requests that will run together."""

    ready_at: float
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0


class Batcher:
    """A ``predict.Runner`` that runs requests of the same kind together."""

    def __init__(self, parameters: BatchingParameters) -> None:
        self._parameters = parameters
        self._lock = threading.Lock()
        self._free = parameters.num_batch_threads
        self._queues: dict[Key, deque[_Batch]] = {}

    def __call__(
        self,
        servable: Servable,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
    ) -> list[np.ndarray]:
        """Outputs of these inputs' rows, in the order asked for.

        Raises:
            ServingError: INVALID_ARGUMENT inputs that can't be batched; UNAVAILABLE
                too many batches wait; or what the batch as a whole came to.
        """
        rows = batch_rows(signature, inputs)
        limit = self._parameters.max_batch_size
        if rows > limit:
            raise invalid_argument(
                f"Task size {rows} is larger than maximum input batch size {limit}"
            )
        fetched = tuple(sorted(outputs))
        if not rows:
            results = servable.run(signature, inputs, fetched)
        else:
            task = _Task(inputs, rows, threading.Condition(self._lock))
            key = (id(servable), signature.name, fetched)
            results = self._wait(task, key, servable, signature)
        by_name = dict(zip(fetched, results, strict=True))
        return [by_name[alias] for alias in outputs]

    def _wait(
        self, task: _Task, key: Key, servable: Servable, signature: Signature
    ) -> list[np.ndarray]:
        with self._lock:
            self._enqueue(task, key, servable)
            self._dispatch()
            while not (task.done or task.leads):
                task.changed.wait(self._patience(task))
                if not (task.done or task.leads):
                    self._dispatch()
        if task.leads:
            self._run(task.batch, servable, signature, key[2])
        if task.error is not None:
            raise task.error
        assert task.outputs is not None
        return task.outputs

    def _enqueue(self, task: _Task, key: Key, servable: Servable) -> None:
        """Join the open batch, or open one; the lock is held."""
        limits = self._parameters
        queue = self._queues.setdefault(key, deque())
        if not queue or not self._fits(queue[-1], task, key, servable):
            if len(queue) >= limits.max_enqueued_batches:
                raise ServingError(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is "
                    f"full; currently {len(queue)} batches enqueued and "
                    f"max_enqueued_batches is {limits.max_enqueued_batches}",
                )
            timeout = limits.batch_timeout_micros / 1e6
            queue.append(_Batch(time.monotonic() + timeout))
        batch = task.batch = queue[-1]
        batch.tasks.append(task)
        batch.rows += task.rows

    def _fits(self, batch: _Batch, task: _Task, key: Key, servable: Servable) -> bool:
        """Whether a request may join: one long one would lengthen every row's axes."""
        rows = batch.rows + task.rows
        if rows > self._parameters.max_batch_size:
            return False
        requests = [t.inputs for t in (*batch.tasks, task)]
        padded = self._parameters.padded_rows(rows)
        if joined_bytes(requests, padded) > MESSAGE_LIMIT:
            return False
        limits, (_, name, outputs) = servable.limits, key
        return not limits or limits.allow_together(name, requests, padded, outputs)

    def _dispatch(self) -> None:
        """Give free slots to the batches that are ready; the lock is held."""
        while self._free:
            key = self._oldest_ready()
            if key is None:
                return
            queue = self._queues[key]
            batch = queue.popleft()
            if not queue:
                del self._queues[key]
            self._free -= 1
            batch.tasks[0].leads = True
            batch.tasks[0].changed.notify()

    def _oldest_ready(self) -> Key | None:
        now = time.monotonic()
        ready = [
            (queue[0].ready_at, key)
            for key, queue in self._queues.items()
            if len(queue) > 1
            or queue[0].rows >= self._parameters.max_batch_size
            or queue[0].ready_at <= now
        ]
        return min(ready)[1] if ready else None

    def _patience(self, task: _Task) -> float | None:
        """How long to sleep: a batch's first request wakes when it may close.

        Once it may, whoever frees a slot starts it.
        """
        if task.batch is None or task.batch.tasks[0] is not task:
            return None
        left = task.batch.ready_at - time.monotonic()
        return left if left > 0 else None

    def _run(
        self,
        batch: _Batch | None,
        servable: Servable,
        signature: Signature,
        fetched: tuple[str, ...],
    ) -> None:
        assert batch is not None
        error, results = None, []
        try:
            results = self._run_batch(batch, servable, signature, fetched)
        except ServingError as refusal:
            error = refusal
        except Exception as failure:
            error = internal(f"{type(failure).__name__}: {failure}")
        with self._lock:
            self._free += 1
            for index, task in enumerate(batch.tasks):
                task.error = error
                task.outputs = None if error else results[index]
                task.changed.notify()
            self._dispatch()

    def _run_batch(
        self,
        batch: _Batch,
        servable: Servable,
        signature: Signature,
        fetched: tuple[str, ...],
    ) -> list[list[np.ndarray]]:
        padded = self._parameters.padded_rows(batch.rows)
        inputs = concatenate(
            signature,
            [task.inputs for task in batch.tasks],
            padded_rows=padded,
            pad_inner=self._parameters.pad_variable_length_inputs,
        )
        outputs = servable.run(signature, inputs, fetched)
        return split(outputs, [task.rows for task in batch.tasks], padded)
