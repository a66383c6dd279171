"""A few bytes can't ask for gigabytes: sizes are bounded before anything is run."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from optserve.runtime.contract import signature
from optserve.runtime.memory import resident_bytes
from optserve.runtime.server import EmbeddedServer
from optserve.runtime.server.request_limits import RequestLimits
from optserve.runtime.server.serving_error import ServingError

from tests.export.exports import exported
from tests.runtime.contract.manifests import manifest

from .calls import Caller, refused

NAMES = ["serving_default", "prefill", "decode", "generate_16", "score", "embed"]
NAMES += ["describe", "tokenizer"]
MANIFEST = manifest(max_positions=256, batch_sizes=[1, 8], signatures=NAMES)
LIMITS = RequestLimits(MANIFEST)
ROWS = 32  # more than the largest batch size: a batcher may merge up to that many


def request(name: str, **sizes: int) -> dict[str, np.ndarray]:
    """Inputs of the contract's shapes; large ones take no memory."""
    spec = signature(name, MANIFEST.cache_layout)
    sizes = {"B": 1, "S": 8, "C": 16, "W": 1, "K": 1, "J": 1} | sizes
    return {
        tensor.name: np.broadcast_to(
            np.zeros((), tensor.numpy_dtype()),
            [dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape],
        )
        for tensor in spec.inputs
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_the_export_was_made_for_passes(name):
    LIMITS.check(name, request(name))
    LIMITS.check(name, request(name, B=8, S=256, C=256, W=256, K=MANIFEST.vocab_size))


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("prefill", {"B": 0, "S": 500_000_000}, "at most S = 256, got 500000000"),
        ("prefill", {"S": 500_000_000}, "at most S = 256"),
        ("score", {"S": 6000}, "at most S = 256"),
        ("embed", {"S": 257}, "at most S = 256"),
        ("serving_default", {"S": 257}, "at most S = 256"),
        ("describe", {"B": 100_000}, "at most B = 8, got 100000"),
        ("tokenizer", {"B": 9}, "at most B = 8"),
        ("decode", {"C": 257}, "at most C = 256"),
        ("generate_16", {"W": 257}, "at most W = 256"),
        ("generate_16", {"K": 500_000_000}, "at most K ="),
        ("prefill", {"B": ROWS + 1}, f"at most B = {ROWS}"),
        ("generate_16", {"B": 10**9}, f"at most B = {ROWS}"),
    ],
)
def test_more_is_refused(name, sizes, words):
    with pytest.raises(ServingError, match=words) as error:
        LIMITS.check(name, request(name, **sizes))
    assert error.value.code.name == "INVALID_ARGUMENT"


def test_shapes_are_the_contracts():
    given = request("decode", B=2)
    for alias, shape in (
        ("input_ids", (2, 8, 1)),
        ("input_length", (3,)),
        ("cache", (2, 16, *MANIFEST.cache_layout.row_shape[:-1], 3)),
        ("cache_length", ()),
    ):
        wrong = given | {alias: np.zeros(shape, given[alias].dtype)}
        with pytest.raises(ServingError, match=rf"input {alias} .* expected \["):
            LIMITS.check("decode", wrong)


def test_rows_times_tokens_are_bounded_where_no_batch_size_is_named():
    limits = RequestLimits(manifest(max_positions=256, signatures=NAMES))
    limits.check("embed", request("embed", B=1024, S=8))
    with pytest.raises(ServingError, match="at most B = 1024"):
        limits.check("embed", request("embed", B=1025, S=8))
    with pytest.raises(ServingError, match="at most B x S = 8192, got 8200"):
        limits.check("embed", request("embed", B=40, S=205))


def test_a_reply_that_no_message_holds_is_refused_before_it_is_computed():
    wide = RequestLimits(
        manifest(
            max_positions=2048, batch_sizes=[32], vocab_size=50272, signatures=NAMES
        )
    )
    with pytest.raises(ServingError, match="would have 13178503168 bytes"):
        wide.check("serving_default", request("serving_default", B=32, S=2048))
    wide.check("score", request("score", B=32, S=1024))


def test_attention_that_takes_gigabytes_is_refused():
    rows = [1, 100]
    many = RequestLimits(
        manifest(max_positions=2048, batch_sizes=rows, signatures=NAMES)
    )
    heads, limit = MANIFEST.cache_layout.heads, 2**31 - 1
    most = limit // (4 * heads * 2048 * 2048)
    many.check("score", request("score", B=most, S=2048))
    with pytest.raises(ServingError, match="attention of one layer"):
        many.check("embed", request("embed", B=most + 1, S=2048))
    with pytest.raises(ServingError, match="attention of one layer"):
        many.check("decode", request("decode", B=most // 2 + 1, S=2048, C=2048))


def test_rows_read_from_a_session_are_the_replys():
    names = ["session_read", "session_decode"]
    sessions = {"slots": 16, "positions": 1024}
    limits = RequestLimits(
        manifest(max_positions=2048, signatures=names, sessions=sessions)
    )
    read = request("session_read", B=64)
    limits.check("session_read", read | {"size": np.full(64, 1024, np.int32)})
    with pytest.raises(ServingError, match="at most B x C = 65536, got 65600"):
        limits.check("session_read", read | {"size": np.full(64, 1025, np.int32)})
    read["size"] = np.full(64, 2**31 - 1, np.int32)
    with pytest.raises(ServingError, match="at most C = 2048"):
        limits.check("session_read", read)


def test_requests_that_are_too_large_together_do_not_join():
    long, short = request("decode", B=8, C=256), request("decode", B=8, C=16)
    assert LIMITS.allow_together("decode", [long, short], 16)
    assert not LIMITS.allow_together("decode", [short] * 5, 40)  # rows
    limits = RequestLimits(manifest(max_positions=256, signatures=NAMES))
    assert limits.allow_together("decode", [short] * 5, 40)
    assert not limits.allow_together("decode", [short] * 4 + [long], 40)  # 40 x 256
    assert limits.allow_together("someone's", [short], 10**9)


def test_the_manifest_says_how_many_tokens_a_call_may_bring():
    limits = RequestLimits(
        manifest(max_positions=256, max_tokens_per_call=512, signatures=NAMES)
    )
    limits.check("prefill", request("prefill", B=2, S=256))
    with pytest.raises(ServingError, match="at most B x S = 512, got 768"):
        limits.check("prefill", request("prefill", B=3, S=256))


def test_signatures_of_others_pass():
    LIMITS.check("somebody's", {"x": np.zeros((0, 10**9))})


@pytest.fixture(scope="module")
def caller():
    with (
        EmbeddedServer(exported("pre_ln").parent, name="opt") as server,
        Caller(server.target, "opt") as caller,
    ):
        yield caller


def small(caller, name: str, shape: list[int], **others):
    """A request of some seventy bytes whose input_ids have this shape."""
    sent = caller.request(name, **others)
    tensor = tf.make_tensor_proto(np.int32([5]))
    tensor.tensor_content, tensor.int_val[:] = b"", [5]
    del tensor.tensor_shape.dim[:]
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    sent.inputs["input_ids" if "row" not in others else "row"].CopyFrom(tensor)
    assert sent.ByteSize() < 150
    return sent


def test_a_storm_of_small_requests_takes_no_memory(caller):
    storm = [
        small(caller, "prefill", [0, 500_000_000], input_length=np.zeros(0, np.int32)),
        small(caller, "prefill", [1, 500_000_000], input_length=np.int32([1])),
        small(caller, "embed", [1, 6000], input_length=np.int32([6000])),
        small(caller, "describe", [100_000], row=np.int32([0])),
    ]
    caller.predict("describe", row=np.int32([0]))
    before = resident_bytes()
    for _ in range(25):
        for sent in storm:
            with refused("INVALID_ARGUMENT", "takes at most"):
                caller.prediction.Predict(sent, timeout=30)
    assert resident_bytes() < 1.2 * before
    assert caller.predict("describe", row=np.int32([0]))["manifest"].shape == (1,)
