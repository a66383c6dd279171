"""API keys: a JSON file of their hashes, each with limits of its own.

    {"keys": [{"name": "search", "sha256": "9f86…", "requests_per_minute": 600}]}

The file is read again when it changes. A key is 256 random bits, so that one SHA-256
hides it; ``optserve api-key NAME`` makes one and shows it once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.regular_files import read_regular_file
from ..errors import InvalidRequest
from .api_errors import RETRY_AFTER, ApiError

MOST_BYTES = 4 << 20
PREFIX = "sk-optserve-"
ANYBODY = "anybody"


@dataclass(frozen=True)
class Key:
    """One key's line in the file."""

    name: str
    digest: bytes
    requests_per_minute: int | None = None


@dataclass
class _Allowance:
    """A bucket that holds a minute's requests and fills evenly."""

    tokens: float
    at: float


def new_key(
    name: str, requests_per_minute: int | None = None
) -> tuple[str, dict[str, Any]]:
    """A new key, and what to put into the file for it."""
    key = PREFIX + secrets.token_urlsafe(32)
    entry = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    if requests_per_minute is None:
        return key, entry
    return key, {**entry, "requests_per_minute": requests_per_minute}


class Keys:
    """Who may call, and how often.

    Args:
        path: the file; None lets everybody in.
        clock: seconds.

    Raises:
        InvalidRequest: the file is not as above.
    """

    def __init__(
        self, path: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._clock = path, clock
        self._keys: list[Key] = []
        self._stamp: tuple[int, int] | None = None
        self._allowances: dict[str, _Allowance] = {}
        if path is not None:
            self._keys = read_keys(path)
            self._stamp = _stamp(path)

    def check(self, authorization: str | None) -> str:
        """The name of the caller's key.

        Args:
            authorization: the header, ``Bearer KEY``.

        Raises:
            ApiError: 401 without a right key, 429 beyond the key's limit.
        """
        if self._path is None:
            return ANYBODY
        self._read_again(self._path)
        kind, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        matching = [k for k in self._keys if hmac.compare_digest(k.digest, digest)]
        if kind.lower() != "bearer" or not matching:
            raise ApiError(
                401,
                "this gateway needs an API key: send 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
            )
        self._count(matching[0])
        return matching[0].name

    def _count(self, key: Key) -> None:
        """Take one of the key's requests; constant work, whatever its past."""
        if key.requests_per_minute is None:
            return
        now, most = self._clock(), float(key.requests_per_minute)
        allowance = self._allowances.setdefault(key.name, _Allowance(most, now))
        filled = allowance.tokens + (now - allowance.at) * most / 60
        allowance.tokens, allowance.at = min(most, filled), now
        if allowance.tokens < 1:
            raise ApiError(
                429,
                f"this key may make {key.requests_per_minute} requests a minute: try "
                f"again in {RETRY_AFTER} s or later",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
            )
        allowance.tokens -= 1

    def _read_again(self, path: Path) -> None:
        """Where the file has changed; a broken one leaves the old keys in force."""
        stamp = _stamp(path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = read_keys(path)
            except InvalidRequest:
                if stamp is None:  # a file that is gone lets nobody in
                    self._keys = []


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        InvalidRequest: it can't be read, or isn't as the module says.
    """
    try:
        document = json.loads(read_regular_file(path, limit=MOST_BYTES))
        return [_key(entry) for entry in document["keys"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            f'{path} is not a file of API keys ({{"keys": [{{"name": …, "sha256": …}}'
            f"]}}): {type(error).__name__}: {error}"
        ) from None


def _key(entry: dict[str, Any]) -> Key:
    if unknown := set(entry) - {"name", "sha256", "requests_per_minute"}:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    name, digest = entry["name"], bytes.fromhex(entry["sha256"])
    limit = entry.get("requests_per_minute")
    if not isinstance(name, str) or not name or len(digest) != 32:
        raise ValueError("a key needs a name and 64 hexadecimal digits")
    if limit is not None and (type(limit) is not int or not 1 <= limit < math.inf):
        raise ValueError("requests_per_minute must be a whole number of 1 or more")
    return Key(name, digest, limit)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
