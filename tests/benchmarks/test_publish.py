"""What a run's figures become in the pages."""

from __future__ import annotations

import pytest

from . import report
from .publish import ROOT, publish

SUMMARY = """\
| engine | ready, s | CPU to ready, s | peak, GB | settled, GB | 1 row, ms per token \
| first token, ms | 8 rows, tokens/s | 32 callers, tokens/s |
|---|---|---|---|---|---|---|---|---|
| optserve-int8 | 2.5 | 3.5 | 1.00 | 0.90 | 10.0 | 200 | 800 | 100 |
| peer-int8 | 2.5 | 3.5 | 1.00 | 0.90 | 10.0 | 200 | 800 |  |"""


def test_one_line_for_each_engine(run):
    assert report.summary(run) == SUMMARY


def test_failures_are_named(run):
    run.processes[1].error = "no such thing"
    assert "peer-int8" not in report.summary(run)
    assert "- peer-int8 failed: no such thing" in report.details(run)


def test_the_readmes_block_is_replaced_and_nothing_else(run, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / ".github").mkdir()
    listed = tmp_path / "tests" / "benchmarks" / "README.md"
    listed.parent.mkdir(parents=True)
    listed.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter")
    old = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(old)
    for _ in range(2):  # once more changes nothing
        readme, picture, data, page, _ = publish(run, tmp_path)
    new = readme.read_text()
    begin, end = new.index("<!-- benchmark"), new.index("<!-- /benchmark -->")
    assert SUMMARY in new[begin:end]
    assert "A CPU (avx2), 40 GB/s, commit abc1234" in new[begin:end]
    assert old.startswith(new[:begin]) and old.endswith(new[end:])
    assert picture.read_text().lstrip().startswith("<?xml")
    assert data.name == "a-cpu-avx2-125m.json"
    assert "**prompt 128, 8 rows, 65 tokens**" in page.read_text()
    assert listed.read_text() == (
        f"before\n<!-- results -->\n- [{run.title}](results/a-cpu-avx2-125m.md)\n"
        "<!-- /results -->\nafter"
    )


def test_another_size_has_a_page_and_no_place_in_the_readme(run, tmp_path):
    listed = tmp_path / "tests" / "benchmarks" / "README.md"
    listed.parent.mkdir(parents=True)
    listed.write_text("<!-- results -->\n<!-- /results -->\n")
    run.preset = "1.3b"
    data, page, index = publish(run, tmp_path)
    assert data.name == "a-cpu-avx2-1-3b.json"
    assert page.name in index.read_text()
    assert not (tmp_path / "README.md").exists()


def test_a_readme_without_a_place_stays_as_it_is(run, tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match="marks"):
        publish(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
