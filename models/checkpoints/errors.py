"""What can be wrong with a checkpoint, as one tree.

    CheckpointError
    ├── CheckpointNotFound      no such directory, file, weight format or hub id
    ├── CorruptFile             truncated, inconsistent or undecodable
    ├── UnsafeFile              would run code, leave its directory or unpack to more
    │                           than it is; nothing of it was used
    ├── UnsupportedFile         sound perhaps, but of a kind that is not read here
    └── HubError                the hub refused, or did not answer

Every message is one sentence that names the file and the fault.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of every error about checkpoint files."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """There is nothing at that path or under that id, or no weights in it."""


class CorruptFile(CheckpointError, ValueError):
    """The file is truncated, contradicts itself or does not decode."""


class UnsafeFile(CheckpointError, ValueError):
    """The file tries what a weight file has no business doing."""


class UnsupportedFile(CheckpointError, ValueError):
    """The file may be sound, but it is of a kind that is not read here."""


class HubError(CheckpointError, OSError):
    """The hub refused the request, or could not be reached."""


def quoted(text: object) -> str:
    """A name from a file, for a message: printable and short, whatever it holds."""
    shown = ascii(text if isinstance(text, str) else type(text).__name__)
    return shown if len(shown) <= 90 else f"{shown[:80]}…{shown[-1]}"
