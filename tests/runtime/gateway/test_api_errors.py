"""What callers and the log are told of failures that nobody foresaw."""

from __future__ import annotations

import logging

from optserve.runtime.gateway.api_errors import as_api_error


def test_the_log_says_where_and_not_what_the_caller_sent(caplog):
    try:
        int("a secret prompt")
    except ValueError as error:
        with caplog.at_level(logging.ERROR, logger="optserve.gateway"):
            answer = as_api_error(error)
    assert answer.status == 500 and "secret prompt" not in answer.message
    assert "ValueError" in caplog.text and __file__ in caplog.text
    assert "a secret prompt" not in caplog.text.replace('int("a secret prompt")', "")
