"""The servers of the server's own tests, for the commands that start or call one."""

from tests.runtime.server.conftest import rec_path, typed_server  # noqa: F401
