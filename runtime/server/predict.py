"""Predict: the checks in TensorFlow Serving's order, then the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ..codec.predict import PredictRequest
from ..contract import MESSAGE_LIMIT
from .request_limits import STRING_SIGNATURES
from .servable import Servable, Signature
from .serving_error import failed_precondition, internal, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
Runner = Callable[
    [Servable, Signature, Mapping[str, np.ndarray], Sequence[str]], list[np.ndarray]
]
"""Runs a signature: by itself, or in a batch with other callers' requests."""

_PREFIX = "tensorflow/serving/"
_METHODS = tuple(_PREFIX + name for name in ("predict", "classify", "regress"))


def predict(
    servable: Servable, request: PredictRequest, run: Runner
) -> tuple[str, dict[str, np.ndarray]]:
    """The signature that ran and its outputs by alias.

    Raises:
        ServingError: the request doesn't fit the model, or an op of it refuses.
    """
    signature = find_signature(servable.signatures, request.model.signature)
    check_input_names(signature, request.inputs)
    aliases = choose_outputs(signature, request.outputs)
    signature.check_dtypes(request.inputs)
    _check_size(request.inputs)
    if servable.limits is not None:
        servable.limits.check(signature.name, request.inputs, request.outputs)
        if signature.name in STRING_SIGNATURES:
            run = run_directly  # in a batch each row would hold the whole text
    arrays = run(servable, signature, request.inputs, aliases)
    return signature.name, dict(zip(aliases, arrays, strict=True))


def run_directly(
    servable: Servable,
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
) -> list[np.ndarray]:
    """Run one request by itself."""
    return servable.run(signature, inputs, outputs)


def find_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """The signature asked for; empty means ``serving_default``."""
    key = name or DEFAULT_SIGNATURE
    signature = signatures.get(key)
    if signature is None:
        raise failed_precondition(f'Serving signature key "{key}" not found.')
    method = signature.proto.method_name
    if method not in _METHODS:
        raise internal(
            "Expected prediction signature method_name to be one of "
            f"{{{', '.join(_METHODS)}}}. Was: {method}"
        )
    return signature


def check_input_names(signature: Signature, given: Iterable[str]) -> None:
    """Raise INVALID_ARGUMENT unless exactly the signature's inputs are given."""
    sent, required = set(given), set(signature.inputs)
    if len(sent) != len(required):
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(required)} "
            f"len({_braced(sent)}) != len({_braced(required)}). "
            f"Sent extra: {_braced(sent - required)}. "
            f"Missing but required: {_braced(required - sent)}."
        )
    for alias in sorted(required - sent):
        raise invalid_argument(
            f"Signature input alias: {alias}(feed name: {signature.inputs[alias][0]}) "
            "not found in request and no default value provided. Inputs expected to "
            f"be in the request {_braced(sent)}, or default input alias set: "
        )


def choose_outputs(signature: Signature, requested: Sequence[str]) -> list[str]:
    """The output aliases to fetch: those requested, or all."""
    for position, alias in enumerate(requested):
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs "
                f"expected to be in the set {_braced(signature.outputs)}."
            )
        if alias in requested[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
    return list(requested) or list(signature.outputs)


def _check_size(inputs: Mapping[str, np.ndarray]) -> None:
    """A repeated value may stand for many: refuse what no message could spell out."""
    size = sum(array.nbytes for array in inputs.values())
    if size > MESSAGE_LIMIT:
        raise invalid_argument(
            f"the inputs have {size} bytes in all, at most {MESSAGE_LIMIT} are possible"
        )


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
