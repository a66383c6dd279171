"""The server's own list of signatures against the manifest's promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optserve.runtime import Client, IncompatibleModel, ServerError
from optserve.runtime.codec import ModelMetadata, ModelSpec, SignatureInfo, TensorInfo
from optserve.runtime.contract import signature

from tests.runtime.numpy_model import NumpyTransport


class Listing(NumpyTransport):
    """A transport whose server lists its signatures, as TensorFlow Serving does."""

    def __init__(self) -> None:
        super().__init__(generate=(4,))
        self.listed = {
            name: SignatureInfo(*map(_infos, (spec.inputs, spec.outputs)))
            for name in self.manifest.signatures
            for spec in [signature(name, self.manifest.cache_layout, vocab_size=128)]
        }
        self.refusal: Exception | None = None

    def metadata(self, *, version: int | None, timeout: float | None) -> ModelMetadata:
        if self.refusal:
            raise self.refusal
        return ModelMetadata(ModelSpec("opt", version=version), self.listed)


def _infos(specs) -> dict[str, TensorInfo]:
    return {
        spec.name: TensorInfo(
            spec.dtype, tuple(d if isinstance(d, int) else None for d in spec.shape)
        )
        for spec in specs
    }


def refused(transport: Listing, words: str) -> None:
    with pytest.raises(IncompatibleModel, match=words):
        Client(transport=transport)
    assert transport.closed


def test_what_the_contract_says_is_accepted():
    transport = Listing()
    Client(transport=transport).close()
    unknown = TensorInfo("float32", None)
    transport.listed["decode"].inputs["cache"] = unknown
    Client(transport=transport).close()


def test_a_signature_that_is_missing():
    transport = Listing()
    del transport.listed["generate_4"]
    refused(transport, "lists no signature 'generate_4'")


def test_other_inputs_or_outputs():
    transport = Listing()
    del transport.listed["decode"].inputs["cache_length"]
    refused(transport, "'decode' has the inputs cache, input_ids, input_length, exp")
    transport = Listing()
    transport.listed["prefill"].outputs["x"] = TensorInfo("float32", None)
    refused(transport, "'prefill' has the outputs logits, new_cache, x")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int64"},
        {"dtype": ""},
        {"shape": (None, None, 3, 2, 4)},
        {"shape": (None, None, 3, 2, 8, 4)},
    ],
)
def test_another_dtype_or_shape(change):
    transport = Listing()
    inputs = transport.listed["decode"].inputs
    inputs["cache"] = replace(inputs["cache"], **change)
    refused(transport, r"input 'cache' of 'decode' is .*, expected float32 \['B', 'C'")


def test_a_proxy_that_hides_the_list_is_no_hindrance():
    for refusal in (ServerError("no", "PERMISSION_DENIED"), IncompatibleModel("no")):
        transport = Listing()
        transport.refusal = refusal
        Client(transport=transport).close()


def test_a_model_that_cannot_generate_is_refused():
    transport = NumpyTransport()
    transport.manifest.signatures.remove("decode")
    with pytest.raises(IncompatibleModel, match="no `decode` signature"):
        Client(transport=transport)
