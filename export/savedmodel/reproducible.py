"""What the writers of a SavedModel leave to chance, made to follow from the content.

With these two the same checkpoint and options give the same bytes in any folder and any
process that has exported nothing before (TensorFlow numbers its functions as it goes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def without_locations() -> Iterator[None]:
    """JAX puts no source locations into its modules.

    They would name files by their absolute paths: different bytes for the same program
    installed elsewhere, and the builder's folders told to whoever gets the model.
    """
    import jax

    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def settle_fingerprint(folder: Path) -> None:
    """Replace the random id in ``fingerprint.pb`` by one of the model's own hashes.

    TensorFlow draws a new ``uuid`` at each saving; all else that it writes is the same
    for the same weights and graph. Servers show the id, and compare nothing with it.
    """
    from tensorflow.core.protobuf import fingerprint_pb2

    path = folder / "fingerprint.pb"
    # Any: the type checker's stubs of TensorFlow's messages lack the uuid.
    fingerprint: Any = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    fingerprint.ClearField("uuid")
    content = fingerprint.SerializeToString(deterministic=True)
    fingerprint.uuid = str(int.from_bytes(hashlib.sha256(content).digest()[:16], "big"))
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))
