"""A loopback server that answers as the model hub does, to downloads and uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves ``{repository: directory}``; ``requests`` logs (method, path, token)."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.gated: set[str] = set()
        self.private: dict[str, str] = {}
        self.truncated: set[str] = set()
        self.failing = False
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering and close the port."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """An upload: make the repository, ask how, commit."""
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.requests.append(("POST", path, token or None))
        if self.hub.failing:
            return self._error(503, "")
        if path == "/api/repos/create":
            given = json.loads(data)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            return self._json({"url": f"{self.hub.url}/{name}", "name": name}, True)
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(data)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": p, **modes} for p in files]}, True)
        name = "/".join(path.split("/")[3:5])
        for line in data.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.uploaded.setdefault(name, {})[entry["value"]["path"]] = content
        url = f"{self.hub.url}/{name}/commit/{COMMIT}"
        self._json({"success": True, "commitUrl": url, "commitOid": COMMIT}, True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.requests.append((self.command, path, token or None))
        if self.hub.failing:
            return self._error(503, "")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in self.hub.repositories:
            return self._error(401, "RepoNotFound")
        if self.hub.private.get(repository, token) != token:
            return self._error(401, "RepoNotFound")
        directory = self.hub.repositories[repository]
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            return self._error(404, "RevisionNotFound")
        if parts[0] == "api" and rest[:1] == ["tree"]:
            return self._json([self._entry(directory, p) for p in files], body)
        if parts[0] == "api":
            names = [{"rfilename": str(p.relative_to(directory))} for p in files]
            info = {"_id": "1", "id": repository, "sha": COMMIT, "siblings": names}
            return self._json(info, body)
        if repository in self.hub.gated:
            return self._error(403, "GatedRepo")
        return self._file(directory / "/".join(rest[2:]), body)

    def _entry(self, directory: Path, path: Path) -> dict:
        return {
            "type": "file",
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
            "path": str(path.relative_to(directory)),
        }

    def _json(self, value: object, body: bool) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and path.name in self.hub.truncated:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "secret words of the server")
        self.send_header("Content-Length", "0")
        self.end_headers()
