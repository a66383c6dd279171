"""Sessions of an exported graph equal explicit caches, whoever else calls."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from optserve.runtime.contract import Manifest, generate_name, session_generate_name
from optserve.runtime.model_dir import read_manifest

from tests.export.exports import INT8_MIXED, INT8_SESSIONS, exported, int32
from tests.runtime.session_schedule import Schedule, off

SLOTS, POSITIONS = 3, 40
KINDS = {
    "tf float32": {},
    "tf int8 cache": INT8_SESSIONS,
    "tf xla bfloat16 cache": {
        "compiler": "xla",
        "cache": "bfloat16",
        "batch_sizes": (3,),
        "generate": (8,),
        "only": INT8_SESSIONS["only"],
    },
    "jax int8": INT8_MIXED,
}


class Loaded:
    """An export in a session, as servers load it."""

    def __init__(self, **options) -> None:
        from optserve.runtime.server.servable import Servable
        from optserve.runtime.server.settings import SessionOptions

        sessions = {"sessions": SLOTS, "session_slots": POSITIONS, "generate": (1, 8)}
        folder = exported("pre_ln", **sessions | options)
        self.manifest: Manifest = read_manifest(folder)
        self.servable = Servable(
            str(folder), SessionOptions(), manifest=read_manifest(folder)
        )

    def __call__(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        signature = self.servable.signatures[name]
        signature.check_dtypes(inputs)
        names = list(signature.outputs)
        return dict(
            zip(names, self.servable.run(signature, inputs, names), strict=True)
        )

    def close(self) -> None:
        self.servable.close()

    def open(self, count: int = 1) -> dict[str, np.ndarray]:
        """New slots and tickets."""
        return self("session_open", row=np.zeros(count, np.int32))

    def generate(self, held, ids, cached=0, **inputs) -> dict[str, np.ndarray]:
        """Greedy tokens of one row."""
        fed = {"input_ids": int32(*ids)[None], "input_length": int32(len(ids))}
        most = {"max_new_tokens": int32(8), "cache_length": int32(cached)}
        rest = off(self.manifest, 8, 1)
        return self(session_generate_name(8), **rest | held | fed | most | inputs)


@pytest.fixture(scope="module")
def model() -> Iterator[Loaded]:
    with closing(Loaded()) as model:
        yield model


def error_of(model: Loaded, name: str, **inputs) -> str:
    from optserve.runtime.server.serving_error import ServingError

    with pytest.raises(ServingError) as refused:
        model(name, **inputs)
    return str(refused.value)


@pytest.fixture(params=KINDS)
def any_model(request) -> Iterator[Loaded]:
    """Of each kind; the usual one is there already."""
    if not (options := KINDS[request.param]):
        yield request.getfixturevalue("model")
        return
    with closing(Loaded(**options)) as model:
        yield model


def test_any_schedule_equals_explicit_caches(any_model):
    Schedule(any_model, any_model.manifest, seed=3).run(50)


def test_slots_are_given_in_turn_and_to_each_row_its_own(model):
    first = model.open(SLOTS)
    assert sorted(first["slot"].tolist()) == [0, 1, 2]
    assert len(set(first["ticket"].tolist())) == SLOTS
    assert (first["ticket"] > 0).all()
    repeated = model("session_open", row=int32(5, 6, 5, 5))
    assert len(set(repeated["slot"].tolist())) == 2
    assert repeated["ticket"][0] == repeated["ticket"][2] == repeated["ticket"][3]
    more = model.open(SLOTS + 2)  # the first two lose theirs again
    reply = model(
        "session_read", **more, start=np.zeros(5, np.int32), size=np.zeros(5, np.int32)
    )
    assert reply["alive"].tolist() == [0, 0, 1, 1, 1]


def test_nobody_reads_what_a_former_session_wrote(model):
    held = model.open()
    reply = model.generate(held, [2, 5, 6, 7])
    assert reply["alive"].tolist() == [1]
    others = model.open(SLOTS)
    for size in (1, 11):
        claim = {
            key: value[others["slot"] == held["slot"]] for key, value in others.items()
        }
        read = model("session_read", **claim, start=int32(0), size=int32(size))
        assert read["alive"].tolist() == [0]
        assert not read["cache"].any()
    assert model.generate(claim, [5], cached=3)["alive"].tolist() == [0]


@pytest.mark.parametrize(
    ("slot", "ticket"),
    [(-1, None), (SLOTS, None), (2**31 - 1, None), (-(2**31), None), (0, 0), (0, -7)],
)
def test_what_no_session_holds_is_not_alive(model, slot, ticket):
    held = model.open()
    claim = {
        "slot": int32(slot),
        "ticket": held["ticket"] if ticket is None else np.array([ticket], np.int64),
    }
    reply = model.generate(claim, [2, 5])
    assert (reply["alive"], reply["count"]) == ([0], [0])
    assert (reply["tokens"] == -1).all()


def test_calls_beyond_a_slot_are_refused(model):
    held = model.open()
    fits = model.generate(held, [5] * (POSITIONS - 7))
    assert fits["count"].tolist() == [8]
    rest = off(model.manifest, 8, 1) | {"max_new_tokens": int32(8)}
    long = {"input_ids": np.full((1, POSITIONS - 6), 5, np.int32)}
    long |= {"input_length": int32(POSITIONS - 6), "cache_length": int32(0)}
    name = session_generate_name(8)
    assert "40 positions of a slot" in error_of(model, name, **held, **rest, **long)
    for start, size in ((0, 41), (40, 1), (-1, 1), (0, -1), (2**31 - 1, 2**31 - 1)):
        message = error_of(
            model, "session_read", **held, start=int32(start), size=int32(size)
        )
        assert "of a slot" in message
    rows = np.zeros((1, 3, *model.manifest.cache_layout.row_shape), np.float32)
    write = {**held, "cache": rows, "start": int32(0), "cache_length": int32(4)}
    assert "cache_length should be at most the cache" in error_of(
        model, "session_write", **write
    )


def test_padded_rows_write_what_the_row_itself_writes(model):
    """The first of equal rows is the one that a caller sent."""
    held = model.open()
    twice = {key: np.repeat(value, 2) for key, value in held.items()}
    inputs = off(model.manifest, 8, 2) | {"max_new_tokens": int32(8, 8)}
    inputs |= {"input_ids": int32(2, 5, 2, 5).reshape(2, 2)}
    inputs |= {"input_length": int32(2, 2), "cache_length": int32(0, 0)}
    reply = model(session_generate_name(8), **twice, **inputs)
    assert reply["alive"].tolist() == [1, 1]
    alone = model.open()
    single = model.generate(alone, [2, 5])
    np.testing.assert_array_equal(reply["tokens"][0], single["tokens"][0])
    rows = [
        model("session_read", **h, start=int32(0), size=int32(9))["cache"]
        for h in (held, alone)
    ]
    np.testing.assert_allclose(*rows, atol=1e-5)


def test_threads_in_their_own_slots_do_not_disturb_each_other(model):
    prompts = [[2, 5 + i, 9] for i in range(SLOTS)]
    expected = []
    for prompt in prompts:
        cache = np.zeros((1, 0, *model.manifest.cache_layout.row_shape), np.float32)
        inputs = off(model.manifest, 8, 1) | {"max_new_tokens": int32(8)}
        inputs |= {"input_ids": int32(*prompt)[None], "input_length": int32(3)}
        inputs |= {"cache": cache, "cache_length": int32(0)}
        expected.append(model(generate_name(8), **inputs))
    opened = model.open(SLOTS)
    held = [
        {key: value[i : i + 1] for key, value in opened.items()} for i in range(SLOTS)
    ]

    def work(i: int) -> None:
        for _ in range(25):
            reply = model.generate(held[i], prompts[i])
            assert reply["alive"].tolist() == [1]
            np.testing.assert_array_equal(reply["tokens"], expected[i]["tokens"])
            read = model("session_read", **held[i], start=int32(0), size=int32(10))
            np.testing.assert_allclose(
                read["cache"], expected[i]["new_cache"][:, :10], atol=1e-5
            )

    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(work, range(SLOTS)))


def test_a_session_that_loses_its_slot_writes_nothing_to_it(model):
    """Callers open without end while others generate: whoever is alive is right."""
    inputs = off(model.manifest, 8, 1) | {"max_new_tokens": int32(8)}
    cache = np.zeros((1, 0, *model.manifest.cache_layout.row_shape), np.float32)

    def rows_of(prompt: list[int]) -> np.ndarray:
        fed = {"input_ids": int32(*prompt)[None], "input_length": int32(3)}
        explicit = {**inputs, **fed, "cache": cache, "cache_length": int32(0)}
        return model(generate_name(8), **explicit)["new_cache"]

    def work(i: int) -> int:
        prompt, alive = [2, 5 + i, 9], 0
        expected = rows_of(prompt)
        for _ in range(30):
            held = model.open()
            if not model.generate(held, prompt)["alive"][0]:
                continue
            read = model("session_read", **held, start=int32(0), size=int32(10))
            if read["alive"][0]:
                alive += 1
                np.testing.assert_allclose(read["cache"], expected[:, :10], atol=1e-5)
        return alive

    with ThreadPoolExecutor(2 * SLOTS) as pool:
        assert sum(pool.map(work, range(2 * SLOTS))) > 0
