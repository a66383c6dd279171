"""Messages that quote a server or a file can't act on a terminal."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from optserve.runtime import Client, OptserveError, Retry
from optserve.runtime import errors as errors_module
from optserve.runtime.codec import ModelMetadata, ModelSpec, SignatureInfo, TensorInfo
from optserve.runtime.transports.base import Call

from .fake_tfs import abort
from .numpy_model import NumpyTransport

EVIL = "\x1b[2J\x1b]0;pwned\x07 \u202eabc\u2066 \x9b31m \u200f\r\nnext line\x00"
ACTS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
CALL = Call("decode", {"x": np.ones((1, 2), np.float32)})
CODES = ["INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "RESOURCE_EXHAUSTED"]
CODES += ["INTERNAL", "UNIMPLEMENTED", "PERMISSION_DENIED", "FAILED_PRECONDITION"]
CODES += ["ABORTED", "UNKNOWN", "DATA_LOSS", "UNAUTHENTICATED", "OUT_OF_RANGE"]


@pytest.mark.parametrize("code", CODES)
def test_status_details(server, connect, code, caplog):
    server.behave = abort(code, f'Serving signature key "{EVIL}" not found.')
    transport = connect(server.target, retry=Retry(connect=0, recover=0, busy_rounds=1))
    with caplog.at_level(logging.DEBUG), pytest.raises(OptserveError) as caught:
        transport.call(CALL, timeout=5)
    for text in (str(caught.value), repr(caught.value), *caplog.messages):
        if "pwned" in text:
            assert not ACTS.search(text)
    assert not ACTS.search(str(caught.value))


def test_every_error_of_ours():
    kinds = [
        kind
        for kind in vars(errors_module).values()
        if isinstance(kind, type) and issubclass(kind, OptserveError)
    ]
    assert len(kinds) >= 10
    for kind in kinds:
        text = str(kind(f"the server said {EVIL}"))
        assert not ACTS.search(text.replace("\n", " ")) and "pwned" in text


def test_manifests():
    def lie(call, outputs):
        text = outputs["manifest"][0]
        text = text.decode() if isinstance(text, bytes) else text
        escaped = EVIL.encode("unicode_escape").decode()
        escaped = re.sub(r"\\x(..)", r"\\u00\1", escaped)
        evil = text.replace('"tf"', f'"{escaped}"')
        assert evil != text
        outputs["manifest"] = np.array([evil.encode()], object)

    with pytest.raises(OptserveError) as caught:
        Client(transport=NumpyTransport(lie=lie))
    assert not ACTS.search(str(caught.value))


def test_names_of_signatures_and_tensors():
    class Listing(NumpyTransport):
        def metadata(self, *, version=None, timeout=None):
            evil = SignatureInfo({EVIL: TensorInfo("float32", ())}, {})
            names = self.manifest.signatures
            listed = ModelMetadata(ModelSpec("opt"), dict.fromkeys(names, evil))
            return listed

    with pytest.raises(OptserveError) as caught:
        Client(transport=Listing())
    assert "pwned" in str(caught.value)
    assert not ACTS.search(str(caught.value).replace("\n", " "))


def test_names_in_a_reply(server, connect):
    from optserve.runtime import codec

    spec = codec.ModelSpec("opt", "", 1)
    good = codec.encode_predict_response(spec, {EVIL: np.ones(3, np.float32)})
    server.behave = lambda data, context: good.replace(
        b"\x12\x02\x08\x03", b"\x12\x02\x08\x02"
    )
    with pytest.raises(OptserveError) as caught:
        connect(server.target).call(CALL, timeout=5)
    assert "pwned" in str(caught.value) and not ACTS.search(str(caught.value))
