"""A folder of blocks: shared, bounded, and never believed without a look."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from optserve.runtime.decoding.prefix_files import PrefixFiles
from optserve.runtime.errors import InvalidRequest

SHAPE = (4, 25)
SIZE = 48 + 400  # bytes of a file


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def rows(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.float32)


def filled(folder: Path, count: int, limit: int = 1 << 20) -> None:
    files = PrefixFiles(folder, limit)
    for number in range(count):
        files.save(key(number), rows(number))
    files.close()


def loaded(folder: Path, *numbers: int) -> list[np.ndarray]:
    files = PrefixFiles(folder, 1 << 20)
    try:
        return files.load([key(number) for number in numbers], SHAPE).result(10)
    finally:
        files.close()


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{key(number).hex()}.rows"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def test_rows_survive_and_end_where_one_is_missing(folder):
    filled(folder, 3)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path_of(folder, 0).stat().st_mode & 0o777 == 0o600
    assert path_of(folder, 0).stat().st_size == SIZE
    assert [block.tolist() for block in loaded(folder, 0, 1, 2, 9, 0)] == [
        rows(number).tolist() for number in range(3)
    ]
    assert loaded(folder, 9, 0) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def of_another_format(path: Path) -> None:
    path.write_bytes(b"O" + path.read_bytes()[1:])


def of_another_key(path: Path) -> None:
    path.write_bytes(path_of(path.parent, 0).read_bytes())


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_link(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        *(truncated, longer, flipped, of_another_format, of_another_key),
        *(empty, a_link, a_pipe),
    ],
)
def test_a_wrong_file_is_removed_and_written_again(folder, spoil):
    filled(folder, 2)
    spoil(path_of(folder, 1))
    assert len(loaded(folder, 0, 1)) == 1
    assert not os.path.lexists(path_of(folder, 1))
    if spoil is a_link:
        assert (folder.parent / "elsewhere").stat().st_size == SIZE
    filled(folder, 2)
    assert len(loaded(folder, 0, 1)) == 2


def test_a_folder_in_a_files_place_is_left_alone(folder):
    filled(folder, 1)
    path_of(folder, 1).mkdir()
    assert len(loaded(folder, 0, 1)) == 1
    filled(folder, 2)
    assert path_of(folder, 1).is_dir()


def test_the_oldest_go_where_the_folder_is_full_and_other_names_stay(folder):
    filled(folder, 10, 10 * SIZE)
    (folder / "notes.txt").write_text("mine")
    for number in range(10):
        os.utime(path_of(folder, number), (number, number))
    abandoned = folder / f"{key(1).hex()}.{'0' * 16}.tmp"
    writing = folder / f"{key(2).hex()}.{'1' * 16}.tmp"
    for temporary in (abandoned, writing):
        temporary.write_bytes(b"half")
    os.utime(abandoned, (1, 1))
    assert len(loaded(folder, 0)) == 1  # young again
    files = PrefixFiles(folder, 10 * SIZE)
    files.save(key(10), rows(10))
    files.close()
    kept = {number for number in range(11) if path_of(folder, number).exists()}
    assert kept == {0, 4, 5, 6, 7, 8, 9, 10}  # 7/8 of the limit
    assert not abandoned.exists()
    assert writing.exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_array_larger_than_the_folder_may_be_is_not_written(folder):
    filled(folder, 1, SIZE)
    assert list(folder.iterdir()) == []


def test_a_full_disk_costs_files_and_nothing_else(folder, monkeypatch, caplog):
    filled(folder, 1)

    def full(fd: int, data: memoryview) -> int:
        if len(data) > 100:
            return real(fd, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.write
    files = PrefixFiles(folder, 1 << 20)
    monkeypatch.setattr(os, "write", full)
    for number in range(1, 4):
        files.save(key(number), rows(number))
    files.close()
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == [path_of(folder, 0).name]
    assert "No space left" in caplog.text
    assert len(loaded(folder, 0)) == 1


def test_a_closed_folder_gives_and_takes_nothing(folder):
    filled(folder, 1)
    files = PrefixFiles(folder, 1 << 20)
    files.close()
    files.close()
    assert files.load([key(0)], SHAPE).result(1) == []
    files.save(key(1), rows(1))


def test_folders_that_others_may_reach_are_refused(folder, tmp_path):
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    with pytest.raises(InvalidRequest, match="chmod 700"):
        PrefixFiles(folder, 1)
    folder.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(InvalidRequest, match="not a link"):
        PrefixFiles(link, 1)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InvalidRequest, match="can't use"):
        PrefixFiles(file, 1)


def test_processes_share_it_while_it_is_too_small_for_them(folder):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        import numpy as np
        from tests.runtime.decoding.test_prefix_files import *
        files = PrefixFiles({str(folder)!r}, 30 * SIZE)
        dice = np.random.default_rng(int(sys.argv[1]))
        hits = 0
        for _ in range(400):
            number = int(dice.integers(50))
            for block in files.load([key(number)], SHAPE).result(10):
                assert block.tolist() == rows(number).tolist()
                hits += 1
            files.save(key(number), rows(number))
        files.close()
        assert hits > 50
    """)
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(seed)]) for seed in (1, 2)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert set(sizes) == {SIZE}
    assert len(sizes) <= 34  # each process looks after a sixteenth of the limit
