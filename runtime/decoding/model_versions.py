"""The versions of a served model, learned from its ``describe`` signature."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..contract import SPOKEN_VERSIONS, Manifest
from ..errors import IncompatibleModel, MalformedReply, ServerError
from ..transports.base import Call, Identity, Reply
from .expected_reply import EXPECTED_MANIFEST, ExpectedReply
from .prefix_cache import PrefixCache
from .served_model import ServedModel
from .session_pool import SessionPool
from .task import Task, with_deadline

Calls = Generator[Call, Reply, ServedModel]
"""Calls to be answered with replies, and the model that they tell of."""


@dataclass
class ModelVersions:
    """The versions of one model seen so far, and where caches of theirs are kept.

    ``current`` is the newest told of.
    """

    current: ServedModel
    known: dict[int, ServedModel] = field(default_factory=dict)
    prefixes: PrefixCache | None = None
    sessions: SessionPool | None = None

    def __post_init__(self) -> None:
        self.known[self.current.version] = self.current

    def leave_rows(self) -> None:
        """Leave padding of rows to whoever joins the calls."""
        self.current = replace(self.current, pads_rows=False)
        self.known[self.current.version] = self.current

    def of(self, version: int | None) -> ServedModel:
        """The model of a pinned version, the current one for None."""
        return self.current if version is None else self.known[version]

    def learn(self, version: int | None = None) -> Calls:
        """Ask what a version is (None: the newest served) and make it current."""
        model = read_description((yield describe_call(version)))
        model = replace(model, pads_rows=self.current.pads_rows)
        self.known[model.version] = self.current = model
        return model


def answering_model(
    call: Call, reply: Reply, versions: ModelVersions, deadline: float | None
) -> Task[ServedModel]:
    """The model that sent a reply, which is compared with what it should be like.

    Transports have compared it where the version was the expected one.

    Raises:
        MalformedReply: another reply; the message names who sent it.
    """
    if reply.version not in versions.known:
        yield from with_deadline(versions.learn(reply.version), deadline)
    model = versions.of(reply.version)
    if not reply.checked and isinstance(call.expected, ExpectedReply):
        try:
            replace(call.expected, model=model).check(reply.outputs)
        except MalformedReply as error:
            sender = reply.target or "the model"
            raise MalformedReply(
                f"{sender} sent a reply that makes no sense ({error})"
            ) from None
    return model


def describe_call(version: int | None = None) -> Call:
    """The call whose reply ``read_description`` reads."""
    row = np.zeros(1, np.int32)
    expected = EXPECTED_MANIFEST
    return Call("describe", {"row": row}, ("manifest",), version, expected=expected)


def ask_for_description() -> Calls:
    """Learn what is served; errors say what to do about it."""
    try:
        reply = yield describe_call()
    except (ServerError, IncompatibleModel) as error:
        if "signature" not in str(error).lower():
            raise
        raise IncompatibleModel(
            "the served model has no `describe` signature, so it was not made by "
            f"`optserve export`: serve such an export ({error})"
        ) from error
    return read_description(reply)


def read_description(reply: Reply) -> ServedModel:
    """The model that a ``describe`` reply tells of, checked.

    Raises:
        MalformedReply: not a manifest.
        IncompatibleModel: another contract version, or no way to generate.
    """
    manifest = _manifest(reply.outputs)
    if manifest.contract_version not in SPOKEN_VERSIONS:
        spoken = " and ".join(map(str, SPOKEN_VERSIONS))
        raise IncompatibleModel(
            f"the model speaks contract version {manifest.contract_version}, this "
            f"client versions {spoken}: export it again, or use the client "
            "of the export's release"
        )
    if missing := {"prefill", "decode"} - set(manifest.signatures):
        raise IncompatibleModel(
            f"the model has no `{min(missing)}` signature, without which nothing can "
            "be generated: serve one made with `optserve export`"
        )
    return ServedModel(manifest, reply.version)


def _manifest(outputs: Mapping[str, np.ndarray]) -> Manifest:
    try:
        return Manifest.from_json(EXPECTED_MANIFEST.read(outputs))
    except ValueError as error:
        raise MalformedReply(
            f"the model's description is unreadable: {error}"
        ) from None


def _described(outputs: Mapping[str, np.ndarray], version: int) -> ServedModel:
    return ServedModel(_manifest(outputs), version)


IDENTITY = Identity(describe_call(), _described)
"""How replicas are compared: by their manifests."""
