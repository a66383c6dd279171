"""What a deployment can be told, checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...runtime.contract import Manifest
from ...runtime.model_dir import VERSION_LIMIT
from ..errors import ExportError

TLS_MODES = ("none", "server", "mutual")
SERVER_IMAGE = "tensorflow/serving:2.20.0"

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_PVC = re.compile(
    r"pvc://(?P<claim>[a-z0-9][-.a-z0-9]*)(?P<path>(/[A-Za-z0-9][-\w.]*)*)/?"
)
_BUCKET = re.compile(r"(gs|s3)://[A-Za-z0-9][-\w./]*")


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """How an export is to be served.

    Args:
        name: the model's name for clients, and of the Kubernetes objects.
        stable: version that the label ``stable`` points to.
        canary: version that the label ``canary`` points to, loaded beside it.
        keep: versions loaded without a label. A server refuses to move a label to a
            version that it has not loaded, so the way back is kept open.
        image: TensorFlow Serving's image.
        storage: where the cluster finds the base folder, ``pvc://CLAIM/PATH``,
            ``gs://…`` or ``s3://…``; default ``pvc://NAME-models/NAME``.
        replicas, max_replicas: bounds of the autoscaler.
        cpus: processors of one server; TensorFlow would count the node's.
        max_batch: most rows that the server merges into one batch.
        batching: merge callers' requests; None decides by the export.
        tls: ``none``, ``server`` (clients check the server) or ``mutual``.
        gateway_image: image of ``optserve gateway``, whose entry point is ``optserve``;
            none leaves the gateway out.

    Raises:
        ExportError: an option is not one that the files can carry.
    """

    name: str = "opt"
    stable: int = 1
    canary: int | None = None
    keep: tuple[int, ...] = ()
    image: str = SERVER_IMAGE
    storage: str = ""
    replicas: int = 2
    max_replicas: int = 8
    cpus: int = 4
    max_batch: int = 8
    batching: bool | None = None
    tls: str = "none"
    gateway_image: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ExportError(
                f"a model's name for deployment has up to 40 lower-case letters, "
                f"digits and dashes, starting with a letter; got {self.name!r}"
            )
        for image in (self.image, *filter(None, [self.gateway_image])):
            if not _IMAGE.fullmatch(image):
                raise ExportError(f"not the name of an image: {image!r}")
        if self.storage and not (
            _PVC.fullmatch(self.storage) or _BUCKET.fullmatch(self.storage)
        ):
            raise ExportError(
                f"storage is pvc://CLAIM/PATH, gs://… or s3://…; got {self.storage!r}"
            )
        for version in self.versions:
            if not 0 <= version <= VERSION_LIMIT:
                raise ExportError(
                    f"a version is from 0 to {VERSION_LIMIT}; got {version}"
                )
        if self.canary == self.stable:
            raise ExportError(f"version {self.stable} cannot be its own canary")
        if not 1 <= self.replicas <= self.max_replicas:
            raise ExportError(
                f"replicas go from 1 to max_replicas; got {self.replicas} and "
                f"{self.max_replicas}"
            )
        if self.cpus < 1 or self.max_batch < 1:
            raise ExportError(
                f"cpus and max_batch are at least 1; got {self.cpus} and "
                f"{self.max_batch}"
            )
        if self.tls not in TLS_MODES:
            raise ExportError(f"tls is one of {TLS_MODES}; got {self.tls!r}")

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions that are loaded, ascending."""
        canary = () if self.canary is None else (self.canary,)
        return tuple(sorted({self.stable, *canary, *self.keep}))

    @property
    def storage_uri(self) -> str:
        """``storage``, or its default."""
        return self.storage or f"pvc://{self.name}-models/{self.name}"

    @property
    def volume_claim(self) -> str | None:
        """The claim of a ``pvc://`` storage, None for a bucket."""
        match = _PVC.fullmatch(self.storage_uri)
        return match["claim"] if match else None

    @property
    def cluster_base_path(self) -> str:
        """The base folder as the server in the cluster sees it."""
        match = _PVC.fullmatch(self.storage_uri)
        return f"/models{match['path']}" if match else self.storage_uri.rstrip("/")


def needs_xla(manifest: Manifest) -> bool:
    """Whether the graphs only run with the server's XLA switched on."""
    return manifest.framework == "jax" or manifest.compiler == "xla"


def batches(manifest: Manifest, options: DeployOptions) -> bool:
    """Whether the server should merge requests of different callers.

    Graphs that name no batch sizes gain from it at any, and so do those of the
    TensorFlow route, whose loop for many rows is plain. Others were made for some
    sizes only, and gain if there is one beyond one row.
    """
    if options.batching is not None:
        return options.batching
    if options.max_batch == 1:
        return False
    return manifest.framework == "tf" or max(manifest.batch_sizes, default=2) > 1


def batch_sizes(manifest: Manifest, options: DeployOptions) -> list[int]:
    """The batch sizes allowed, ascending; the last one is the server's maximum.

    Prepared sizes if the export has them, else powers of two: the server pads a
    batch to the next one, so that few shapes ever occur.
    """
    prepared = sorted({b for b in manifest.batch_sizes if b <= options.max_batch})
    if prepared:
        return prepared
    sizes = [1]
    while sizes[-1] * 2 < options.max_batch:
        sizes.append(sizes[-1] * 2)
    return sizes if options.max_batch == 1 else [*sizes, options.max_batch]
