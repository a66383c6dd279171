"""Whether the signatures that a server lists are those that the manifest promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..codec import ModelMetadata, TensorInfo
from ..contract import TensorSpec, signature
from ..errors import IncompatibleModel, ServerError
from .served_model import ServedModel


@contextmanager
def compared(model: ServedModel) -> Iterator[list[ModelMetadata]]:
    """Around the question for the signatures; the caller adds the answer to the list.

    A refusal to list them is passed over: the version is gone again, or a proxy lets
    Predict through only.

    Raises:
        IncompatibleModel: as ``check_signatures``.
    """
    answers: list[ModelMetadata] = []
    with suppress(ServerError, IncompatibleModel):
        yield answers
    for served in answers:
        check_signatures(model, served)


def check_signatures(model: ServedModel, served: ModelMetadata) -> None:
    """Compare names, dtypes and shapes with the contract's.

    Raises:
        IncompatibleModel: a signature of the manifest is missing or another one.
    """
    for name in model.manifest.signatures:
        try:
            wanted = signature(name, model.layout, vocab_size=model.manifest.vocab_size)
        except KeyError:
            continue  # an addition that this client doesn't know
        found = served.signatures.get(name)
        if found is None:
            raise IncompatibleModel(
                f"the server lists no signature {name!r}, which the model's manifest "
                "names: was the export's folder changed? Export it again"
            )
        for side, specs, infos in (
            ("input", wanted.inputs, found.inputs),
            ("output", wanted.outputs, found.outputs),
        ):
            if infos.keys() != {spec.name for spec in specs}:
                raise IncompatibleModel(
                    f"signature {name!r} has the {side}s {', '.join(sorted(infos))}, "
                    f"expected {', '.join(sorted(s.name for s in specs))}: export the "
                    "model again with this release"
                )
            for spec in specs:
                _check_tensor(f"{side} {spec.name!r} of {name!r}", spec, infos)


def _check_tensor(what: str, spec: TensorSpec, infos: dict[str, TensorInfo]) -> None:
    info = infos[spec.name]
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
