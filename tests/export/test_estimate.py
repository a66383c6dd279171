"""What sessions would take, before anything is exported."""

from __future__ import annotations

from dataclasses import replace

from optserve.export.estimate import estimate_savedmodel
from optserve.export.options import ExportOptions
from optserve.models.config import OPTConfig


def test_sessions_are_counted_with_their_memory_and_signatures():
    config = OPTConfig.preset("125m")
    plain = ExportOptions(generate=(8,))
    with_sessions = replace(plain, sessions=16, session_slots=1024)
    before = estimate_savedmodel(config, plain)
    after = estimate_savedmodel(config, with_sessions)
    full = 16 * 1024 * 12 * 2 * 768 * 4
    assert (before.session_memory, after.session_memory) == (0, full)
    assert after.server_memory == before.server_memory + full
    assert after.artefact == before.artefact
    added = set(after.signatures) - set(before.signatures)
    assert {"session_open", "session_generate_8", "session_read"} <= added
    assert all(name.startswith("session_") for name in added)


def test_slots_are_no_longer_than_the_model():
    config = OPTConfig.preset("125m")
    long = ExportOptions(sessions=1, session_slots=100_000)
    assert estimate_savedmodel(config, long).session_memory == 2048 * 12 * 2 * 768 * 4
