"""The connection's options: what is encrypted, and where a token may go."""

from __future__ import annotations

import argparse
import os

import pytest
from optserve.runtime import cli
from optserve.runtime.commands.connection_arguments import add_connection, opened_client
from optserve.runtime.errors import InvalidRequest
from optserve.runtime.transports.addresses import is_local


@pytest.fixture
def opened(monkeypatch):
    """Opens a client that only tells what it was given."""

    class Told:
        def __init__(self, target, **options):
            self.target, self.options = target, options

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("optserve.runtime.commands.connection_arguments.Client", Told)

    def parse(*arguments: object) -> Told:
        parser = argparse.ArgumentParser()
        add_connection(parser)
        with opened_client(parser.parse_args([str(a) for a in arguments])) as client:
            return client

    return parse


@pytest.mark.parametrize(
    "flags",
    [
        ["--tls"],
        ["--tls-server-name", "models.example"],
        ["--tls-ca", "ca.pem"],
        ["--tls-cert", "c.pem", "--tls-key", "k.pem"],
    ],
)
def test_any_tls_option_encrypts(opened, flags):
    tls = opened("--target", "models.example:443", *flags).options["tls"]
    assert tls is not None
    assert (tls.roots is None) == ("--tls-ca" not in flags)


def test_no_tls_option_means_none(opened):
    assert "tls" not in opened("--target", "localhost:8500").options


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("secret\n")
    return path


ELSEWHERE = ["models.example:8500", "10.0.0.7:8500", "dns:///models:8500", "[::2]:85"]
ELSEWHERE += ["127.0.0.1.evil.example:80", "ipv4:127.0.0.1:1,10.0.0.7:1", "vsock:3:1"]
HERE = ["127.0.0.1:8500", "localhost:8500", "[::1]:8500", "unix:/run/opt.sock"]
HERE += ["127.9.9.9:1", "dns:///localhost:8500", "unix-abstract:opt"]


def test_addresses_may_be_repeated_or_separated_by_commas(opened):
    many = [
        "--target",
        "a:1,b:2",
        "--target",
        "unix:/c",
        "--target",
        "ipv4:1.2.3.4,5.6.7.8",
    ]
    assert opened(*many).target == ["a:1", "b:2", "unix:/c", "ipv4:1.2.3.4,5.6.7.8"]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_a_token_does_not_leave_the_machine_in_the_clear(opened, token, target):
    assert not is_local(target)
    given = ["--target", "127.0.0.1:1", "--target", target, "--token-file", token]
    with pytest.raises(InvalidRequest, match=r"without encryption: use TLS") as error:
        opened(*given)
    assert target in str(error.value) and "secret" not in str(error.value)
    for flag in (["--tls"], ["--tls-server-name", "x"], ["--insecure-token"]):
        metadata = opened(*given, *flag).options["metadata"]
        assert metadata() == [("authorization", "Bearer secret")]


@pytest.mark.parametrize("target", HERE)
def test_on_this_machine_a_token_needs_no_encryption(opened, token, target):
    assert is_local(target)
    assert opened("--target", target, "--token-file", token).options["metadata"]


def test_a_token_file_is_read_for_each_call_so_it_is_no_pipe(opened, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="read for each call: is not a regular"):
        opened("--target", "localhost:1", "--token-file", tmp_path / "pipe")


@pytest.mark.parametrize(
    "content",
    [b"", b"\n \n", b"\xe0\xff", "schlüssel".encode(), b"two\nlines", b"a\x1b[2J"],
)
def test_a_token_file_that_holds_no_token(opened, token, content):
    """Nothing is sent without the token that was asked for."""
    token.write_bytes(content)
    with pytest.raises(InvalidRequest, match="must hold one line of printable ASCII"):
        opened("--target", "localhost:1", "--token-file", token)


def test_a_token_file_of_any_size(opened, token):
    token.write_bytes(b"x" * 70_000)
    with pytest.raises(InvalidRequest, match="more than 65536 bytes"):
        opened("--target", "localhost:1", "--token-file", token)


FILES = ["--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name", "--token-file"]


@pytest.mark.parametrize("flag", FILES)
def test_an_empty_value_is_not_as_if_nothing_was_said(opened, capsys, flag):
    """What an unset variable of a shell makes of ``--tls-ca "$CA"``: not plaintext."""
    with pytest.raises(SystemExit):
        opened("--target", "models.example:443", flag, "")
    assert "expected a value, got an empty text" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--tls", "--label x", "--token-file x", "--wait 3"])
def test_options_of_a_server_mean_nothing_in_process(opened, flag):
    with pytest.raises(InvalidRequest, match="needs --target"):
        opened("--model", "out", *flag.split())


def test_a_model_in_this_process_is_what_the_client_makes_of_it(opened):
    client = opened("--model", "out", "--threads", "2", "--max-rows", "4")
    assert str(client.target) == "out"
    given = {key: value for key, value in client.options.items() if value is not None}
    assert given == {"threads": 2, "max_rows": 4}


@pytest.mark.parametrize("arguments", ["x", "--target h:1 --unheard-of x"])
def test_a_usage_error_is_one_sentence(capsys, arguments):
    assert cli.main(["generate", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "see optserve generate --help" in err


def test_a_standard_output_that_is_closed_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert cli.main(["describe", "--target", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("optserve: standard output is closed")
