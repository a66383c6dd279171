"""What an export refuses, in one sentence each."""

from __future__ import annotations


class ExportError(ValueError):
    """The checkpoint or the options cannot become what was asked for."""
