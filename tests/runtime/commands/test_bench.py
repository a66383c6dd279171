"""``optserve bench`` belongs to a clone."""

from __future__ import annotations

from optserve.runtime import cli
from optserve.runtime.commands import bench


def test_a_clone_has_it(capsys):
    try:
        cli.main(["bench", "--help"])
    except SystemExit as ended:
        assert ended.code == 0
    assert "--engines" in capsys.readouterr().out


def test_elsewhere_one_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    assert cli.main(["bench", "--engines", "optserve-int8"]) == 1
    assert capsys.readouterr().err == (
        "optserve: optserve bench runs from a clone of the repository: install it "
        "there with pip install -e '.[bench]'\n"
    )
