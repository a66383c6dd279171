"""A batch's tensors: requests joined along axis 0, and outputs split among them.

Rules and messages of TensorFlow Serving's ``batching_session.cc`` and
``batching_util.cc``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .aligned_buffers import BUFFERS
from .servable import Signature
from .serving_error import failed_precondition, invalid_argument


def batch_rows(signature: Signature, inputs: Mapping[str, np.ndarray]) -> int:
    """Rows of a request, the same along axis 0 of each input.

    Raises:
        ServingError: INVALID_ARGUMENT if the inputs can't be batched.
    """
    if not inputs:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    rows = None
    for alias, array in inputs.items():
        if not array.ndim:
            raise invalid_argument(
                "Batching Run() input tensors must have at least one dimension"
            )
        if rows is not None and len(array) != rows:
            raise invalid_argument(
                "Batching Run() input tensors must have equal 0th-dimension size"
            )
        rank = signature.ranks[alias]
        if rank is not None and rank != array.ndim:
            raise invalid_argument(  # so that it can't spoil others' batch
                f"input {alias} has {array.ndim} axes, the signature has {rank}"
            )
        rows = len(array)
    assert rows is not None
    return rows


def joined_bytes(requests: Sequence[Mapping[str, np.ndarray]], rows: int) -> int:
    """Bytes that ``rows`` rows of these requests take when their axes are padded."""
    total = 0
    for alias, first in requests[0].items():
        inner = zip(*(request[alias].shape[1:] for request in requests), strict=False)
        total += rows * math.prod(map(max, inner)) * first.dtype.itemsize
    return total


def concatenate(
    signature: Signature,
    requests: Sequence[Mapping[str, np.ndarray]],
    *,
    padded_rows: int,
    pad_inner: bool,
) -> Mapping[str, np.ndarray]:
    """The requests' inputs, concatenated along axis 0.

    Args:
        signature: names and order of the inputs.
        requests: inputs of each request.
        padded_rows: rows of the result; those after the last request's repeat the
            first row of the last request.
        pad_inner: lengthen other axes at their end with the tensor's first element;
            else they must be equal.

    Raises:
        ServingError: shapes that don't go together.
    """
    if len(requests) == 1 and padded_rows == len(next(iter(requests[0].values()))):
        return requests[0]
    return {
        alias: _concatenate_one(
            tensor_name, [r[alias] for r in requests], padded_rows, pad_inner
        )
        for alias, (tensor_name, _) in signature.inputs.items()
    }


def split(
    outputs: Sequence[np.ndarray], rows: Sequence[int], padded_rows: int
) -> list[list[np.ndarray]]:
    """Each request's rows of each output, as views.

    Raises:
        ServingError: FAILED_PRECONDITION for an output whose axis 0 isn't the batch.
    """
    for array in outputs:
        if not array.ndim:
            raise failed_precondition("Batched output tensor has 0 dimensions")
        if len(array) != padded_rows:
            raise failed_precondition(
                "Batched output tensor's 0th dimension does not equal the sum of the "
                f"0th dimension sizes of the input tensors. 0th dimension size: "
                f"{len(array)}; batch size: {sum(rows)}; "
                f"padding size: {padded_rows - sum(rows)}"
            )
    ends = np.cumsum(rows).tolist()
    return [
        [array[end - count : end] for array in outputs]
        for count, end in zip(rows, ends, strict=True)
    ]


def _concatenate_one(
    name: str, arrays: list[np.ndarray], padded_rows: int, pad_inner: bool
) -> np.ndarray:
    inner = {array.shape[1:] for array in arrays}
    if len(inner) > 1 and (not pad_inner or len({len(s) for s in inner}) > 1):
        raise failed_precondition(
            f"Tensors with name '{name}' from different tasks have different shapes "
            "and padding is turned off.Set pad_variable_length_inputs to true, or "
            "ensure that all tensors with the same namehave equal dimensions starting "
            "with the first dim."
        )
    longest = tuple(max(sizes) for sizes in zip(*inner, strict=True))
    joined = BUFFERS.empty((padded_rows, *longest), arrays[0].dtype)
    start = 0
    for array in arrays:
        _place(joined[start : start + len(array)], array)
        start += len(array)
    if start < padded_rows:
        first = start - len(arrays[-1])
        joined[start:] = joined[first : first + 1]
    return joined


def _place(target: np.ndarray, array: np.ndarray) -> None:
    """Copy ``array`` to the start of ``target``; its first element fills the rest."""
    if target.shape != array.shape and not array.size:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    inside: list[slice] = [slice(None)]
    for size, longest in zip(array.shape[1:], target.shape[1:], strict=True):
        if size < longest:
            target[(*inside, slice(size, None))] = array.flat[0]
        inside.append(slice(size))
    target[tuple(inside)] = array
