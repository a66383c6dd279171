"""One loaded model version: a session, its signatures, and how to run them.

A TensorFlow 1 session, as in TensorFlow Serving itself: any SavedModel with the
``serve`` tag runs, error texts are the same, and a call costs microseconds. Inputs that
lie at 64-byte boundaries are fed without a copy, and outputs are fetched without one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2

from ..contract import EXTRA_OUTPUTS, Manifest
from ..memory import release_freed_memory
from .aligned_buffers import BUFFERS
from .found_at_load import found_at_load
from .request_limits import RequestLimits
from .serving_error import ServingError, from_tensorflow, internal, invalid_argument
from .settings import SessionOptions
from .xla_signatures import xla_signatures

_MOST_PROGRAMS = 256
"""Beyond so many the oldest goes: outputs allow for two to their number of choices."""
_TYPE_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


def type_name(dtype: tf.DType) -> str:
    """TensorFlow's C++ name of a dtype, which the server's messages use."""
    return _TYPE_NAMES.get(dtype.name, dtype.name)


class Signature:
    """One signature: aliases, tensor names and dtypes. Feeds sorted by tensor name."""

    def __init__(self, name: str, proto: meta_graph_pb2.SignatureDef) -> None:
        self.name = name
        self.proto = proto
        self.inputs = {
            alias: (info.name, tf.dtypes.as_dtype(info.dtype))
            for alias, info in sorted(proto.inputs.items(), key=lambda i: i[1].name)
        }
        self.ranks = {
            alias: None
            if info.tensor_shape.unknown_rank
            else len(info.tensor_shape.dim)
            for alias, info in proto.inputs.items()
        }
        self.outputs = {
            alias: info.name for alias, info in sorted(proto.outputs.items())
        }

    def check_dtypes(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raise INVALID_ARGUMENT for an input of another dtype than the model's."""
        for index, (alias, (_, expected)) in enumerate(self.inputs.items()):
            dtype = inputs[alias].dtype
            got = tf.string if dtype.kind == "O" else tf.dtypes.as_dtype(dtype)
            if got != expected:
                raise invalid_argument(
                    f"Expects arg[{index}] to be {type_name(expected)} "
                    f"but {type_name(got)} is provided"
                )


class Servable:
    """A SavedModel version in memory. ``run`` may be called from many threads."""

    def __init__(
        self,
        path: str,
        options: SessionOptions,
        *,
        manifest: Manifest | None = None,
        limits: RequestLimits | None = None,
    ) -> None:
        """Load a SavedModel.

        Args:
            path: its folder.
            options: TensorFlow's threads and XLA.
            manifest: an export's, which says that it is ours. TensorFlow's passes that
                find nothing in such a graph are left out (:func:`_few_passes`). And
                outputs that nobody asks for are fetched all the same unless they are
                ``EXTRA_OUTPUTS``: they cost little beside another program of the same
                signature, which its first caller would wait for.
            limits: what its requests may be, for ``predict.predict`` to check.

        Raises:
            ServingError: it can't be loaded.
        """
        self.limits = limits
        self._exported = manifest is not None
        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=options.intra_op_threads,
            inter_op_parallelism_threads=options.inter_op_threads,
        )
        if manifest is not None:
            _few_passes(config.graph_options.rewrite_options, manifest)
        # One op at a time: in the caller's thread, so that callers don't queue up
        self._thread_pool = -1 if options.inter_op_threads == 1 else 0
        self._lock = threading.Lock()
        self._callables: dict[tuple[str, tuple[str, ...]], Callable[..., Any]] = {}
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default(), _without_deprecation_warnings():
                meta_graph = tf.compat.v1.saved_model.loader.load(
                    self._session, [tf.saved_model.SERVING], path
                )
        except Exception as error:
            self._session.close()
            raise _load_error(path, error) from error
        self.found_at_load = found_at_load(self._session) if manifest else {}
        self.signatures = {
            name: Signature(name, proto)
            for name, proto in meta_graph.signature_def.items()
        }
        self._refused = (
            set() if options.xla_cpu_compilation_enabled else xla_signatures(meta_graph)
        )

    def run(
        self,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
    ) -> list[np.ndarray]:
        """Run one signature and return the outputs named, in that order.

        Inputs' names and dtypes must have been checked. Raises ``ServingError`` with
        TensorFlow's own code and message if an op refuses.
        """
        if signature.name in self._refused:
            raise internal("XLA compilation disabled")
        fetched = self._fetched(signature, outputs)
        run = self._callable(signature, fetched)
        try:
            results = run(*(BUFFERS.aligned(inputs[a]) for a in signature.inputs))
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        except (TypeError, ValueError) as error:
            raise invalid_argument(str(error)) from None
        return [results[fetched.index(alias)] for alias in outputs]

    def close(self) -> None:
        """Free the model's memory; no ``run`` may be under way."""
        self._callables.clear()
        self._session.close()

    def _fetched(self, signature: Signature, outputs: Sequence[str]) -> tuple[str, ...]:
        """What to fetch for ``outputs``: each choice is a program of its own."""
        if not self._exported:
            return tuple(sorted(outputs))
        extra = EXTRA_OUTPUTS.get(signature.name, frozenset())
        nodes = {name.partition(":")[0] for name in signature.outputs.values()}
        if len(nodes) == 1:  # which computes all outputs, whatever is fetched
            extra = frozenset()
        left_out = extra if extra.isdisjoint(outputs) else frozenset()
        return tuple(alias for alias in signature.outputs if alias not in left_out)

    def _callable(
        self, signature: Signature, outputs: tuple[str, ...]
    ) -> Callable[..., Any]:
        key = (signature.name, outputs)
        run = self._callables.get(key)
        if run is None:
            options = config_pb2.CallableOptions(
                feed=[name for name, _ in signature.inputs.values()],
                fetch=[signature.outputs[alias] for alias in outputs],
            )
            options.run_options.inter_op_thread_pool = self._thread_pool
            with self._lock:
                run = self._callables.get(key)
                if run is None:
                    run = self._session._make_callable_from_options(options)
                    # What the passes over the graph have used, before the first call
                    # packs weights.
                    release_freed_memory()
                    self._callables[key] = run
                    if len(self._callables) > _MOST_PROGRAMS:
                        del self._callables[next(iter(self._callables))]
        return run


def _few_passes(
    rewriting: rewriter_config_pb2.RewriterConfig, manifest: Manifest
) -> None:
    """Leave out what takes most of the time that a graph needs to load.

    Each pass copies the graph and all its functions, for each signature. An export has
    no constants to fold, as its weights are variables, no layouts of images and no
    parts that are computed twice. The passes that remain bring 5 to 30 % of a step of
    TensorFlow's, and few of them where weights are int8: whose products can't be fused
    with what follows them.
    """
    off = rewriter_config_pb2.RewriterConfig.OFF
    rewriting.constant_folding = off
    rewriting.layout_optimizer = off
    rewriting.common_subgraph_elimination = off
    rewriting.loop_optimization = off
    rewriting.shape_optimization = off
    rewriting.implementation_selector = off
    rewriting.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    rewriting.disable_tfg_optimizer = True
    rewriting.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    if manifest.weights_dtype == "int8":
        rewriting.arithmetic_optimization = off
        rewriting.remapping = off


@contextlib.contextmanager
def _without_deprecation_warnings() -> Iterator[None]:
    """TensorFlow warns of sessions, which it keeps for servers like this one."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_error(path: str, error: Exception) -> ServingError:
    if isinstance(error, tf.errors.OpError):
        return from_tensorflow(error)
    text = " ".join(str(error).split())
    return internal(f"cannot load the SavedModel at {path}: {text}")
