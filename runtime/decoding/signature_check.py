"""Whether the signatures that a server lists are those that the manifest promises."""

from __future__ import annotations

from ..codec import ModelMetadata, TensorInfo
from ..contract import TensorSpec
from ..errors import IncompatibleModel
from .served_model import ServedModel


def check_signatures(model: ServedModel, listed: ModelMetadata) -> None:
    """Compare names, dtypes and shapes with the contract's.

    Raises:
        IncompatibleModel: a signature of the manifest is missing or has other tensors.
    """
    for name in model.manifest.signatures:
        try:
            spec = model.signature(name)
        except KeyError:
            continue  # an addition that this client doesn't know
        info = listed.signatures.get(name)
        if info is None:
            raise IncompatibleModel(
                f"the server lists no signature {name!r}, which the model's manifest "
                "names: was the export's folder changed? Export it again"
            )
        _check_side("input", name, spec.inputs, info.inputs)
        _check_side("output", name, spec.outputs, info.outputs)


def _check_side(
    side: str, name: str, specs: tuple[TensorSpec, ...], infos: dict[str, TensorInfo]
) -> None:
    """All inputs, or all outputs, of one signature."""
    if infos.keys() != {spec.name for spec in specs}:
        raise IncompatibleModel(
            f"signature {name!r} has the {side}s {', '.join(sorted(infos))}, "
            f"expected {', '.join(sorted(s.name for s in specs))}: export the "
            "model again with this release"
        )
    for spec in specs:
        _check_tensor(f"{side} {spec.name!r} of {name!r}", spec, infos[spec.name])


def _check_tensor(what: str, spec: TensorSpec, info: TensorInfo) -> None:
    shape = [size if isinstance(size, int) else None for size in spec.shape]
    fits = info.shape is None or (
        len(info.shape) == len(shape)
        and all(
            None in pair or pair[0] == pair[1]
            for pair in zip(info.shape, shape, strict=True)
        )
    )
    if info.dtype != spec.dtype or not fits:
        has = "any shape" if info.shape is None else list(info.shape)
        raise IncompatibleModel(
            f"{what} is {info.dtype or 'of another dtype'} {has}, expected "
            f"{spec.dtype} {list(spec.shape)}: export the model again with this release"
        )
