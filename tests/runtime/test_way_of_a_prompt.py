"""runtime/README.md lists the ways that prompts and replies really go."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from optserve.runtime import Client

from .numpy_model import NumpyTransport
from .numpy_server import serving

RUNTIME = Path(sys.modules[Client.__module__].__file__ or "").parent
PAGE = Path(__file__).parents[2] / "runtime" / "README.md"


def listed() -> list[list[tuple[str, str]]]:
    """(function, file) of each hop, for each of the page's lists."""
    texts = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.S)
    return [re.findall(r"^ *\d+ +([\w.]+) +([\w/]+\.py)", t, re.M) for t in texts]


def followed(path: str) -> list[tuple[str, str, str]]:
    """(event, function, file) of the project's own calls during one generation."""
    events: list[tuple[str, str, str]] = []

    def note(frame, event, _) -> None:
        code = frame.f_code
        if event in ("call", "return") and code.co_filename.startswith(str(RUNTIME)):
            file = str(Path(code.co_filename).relative_to(RUNTIME))
            events.append((event, code.co_qualname, file))

    with Client(path) as client:
        sys.setprofile(note)
        try:
            client.generate([[2, 5, 9]], max_new_tokens=3)
        finally:
            sys.setprofile(None)
    return events


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no qualified name")
def test_prompt_to_wire_and_reply_to_text():
    prompt_to_wire, reply_to_text = listed()
    assert len(prompt_to_wire) < 14
    with serving(NumpyTransport(generate=(2,))) as address:
        events = followed(address)
    calls = [(name, file) for event, name, file in events if event == "call"]
    assert [hop for hop in dict.fromkeys(calls) if hop in prompt_to_wire] == (
        prompt_to_wire
    )
    # A generator's every resumption is a call, so the way back starts at the wire.
    sent = len(calls) - calls[::-1].index(("encode_tensor", "codec/tensors.py"))
    back = iter(calls[sent:])
    entered = [hop for hop in reply_to_text if hop not in prompt_to_wire]
    assert all(hop in back for hop in entered)
