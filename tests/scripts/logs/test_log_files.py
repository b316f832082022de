"""The log in parts: no line is lost, cut or shown twice, whoever turns it and whenever."""

import os
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from scripts.lib.logs import log_files, run_log
from scripts.lib.logs.log_files import (
    KEPT,
    Mark,
    every_line,
    follow,
    last_lines,
    lines_of_last_run,
    of_rank,
    open_parts,
    part,
    read_since,
)

RUN = "2026-01-01 10:00:00 supervisor: starting run "


def write(log: Path, *numbers: int, max_bytes: int = 200) -> None:
    out = run_log.RunLog(log, max_bytes)
    out.write([f"line {number}".encode() for number in numbers])
    out.flush()


def said(lines: list[bytes]) -> list[str]:
    return [line.decode() for line in lines]


def read(log: Path, count: int | None = None, choose=every_line) -> list[str]:
    with ExitStack() as stack:
        return said(last_lines(open_parts(log, stack), count, choose))


def parts(log: Path) -> list[int]:
    return [number for number in range(99) if part(log, number).exists()]


def test_a_full_log_is_turned_and_no_line_is_lost_or_cut(tmp_path):
    log = tmp_path / "server.log"
    write(log, *range(50))
    assert len(parts(log)) > 2
    assert all(part(log, number).stat().st_size <= 260 for number in parts(log))
    assert read(log) == [f"line {number}" for number in range(50)]
    assert log.read_text().splitlines()[0].endswith("supervisor: continued from server.log.1")


def test_only_the_newest_parts_are_kept(tmp_path):
    log = tmp_path / "server.log"
    write(log, *range(1000))
    assert parts(log) == list(range(KEPT + 1))
    kept = read(log)
    assert kept == [f"line {number}" for number in range(1000 - len(kept), 1000)]


def test_a_size_of_0_never_turns(tmp_path):
    log = tmp_path / "server.log"
    write(log, *range(1000), max_bytes=0)
    assert parts(log) == [0]


def test_a_log_that_is_full_at_the_start_is_turned_first(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("old\n" * 100)
    write(log, 1)
    assert part(log, 1).read_text() == "old\n" * 100
    assert read(log)[-1] == "line 1"


def test_a_line_longer_than_a_part_is_written_whole(tmp_path):
    log = tmp_path / "server.log"
    out = run_log.RunLog(log, 100)
    out.write([b"x" * 1000, b"y" * 1000])
    out.flush()
    assert read(log) == ["x" * 1000, "y" * 1000]


def test_a_log_emptied_by_others_is_not_turned_early(tmp_path):
    log = tmp_path / "server.log"
    out = run_log.RunLog(log, 1000)
    out.write([b"x" * 900])
    out.flush()
    os.truncate(log, 0)
    out.write([b"y" * 400])
    out.flush()
    assert parts(log) == [0]
    assert read(log) == ["y" * 400]


def test_a_link_is_followed_to_the_disk_that_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    log = tmp_path / "server.log"
    log.symlink_to(tmp_path / "disk" / "real.log")
    write(log, *range(50))
    assert log.is_symlink()
    assert (tmp_path / "disk" / "real.log.1").exists()


@pytest.mark.parametrize("refused", ["open", "replace"])
def test_a_log_that_cannot_be_turned_grows_on(tmp_path, monkeypatch, capfd, refused):
    """A full disk or a folder that has become read-only."""
    log = tmp_path / "server.log"
    out = run_log.RunLog(log, 1000)
    out.write([b"first"])
    out.flush()
    plain = getattr(os, refused)

    def refuse(path, *rest):
        if str(path).endswith(".new"):
            raise OSError(28, "No space left on device")
        return plain(path, *rest)

    monkeypatch.setattr(run_log.os, refused, refuse)
    out.write([b"line %d" % number for number in range(200)])
    out.flush()
    monkeypatch.undo()
    out.write([b"then %d" % number for number in range(50)])
    out.flush()
    assert read(log) == [
        "first",
        *(f"line {number}" for number in range(200)),
        *(f"then {number}" for number in range(50)),
    ]
    assert parts(log) == [0, 1]
    assert capfd.readouterr().out.count("No space left on device; it grows on") == 1


def test_what_python_says_goes_to_the_new_part_too(tmp_path):
    """--detach gives the supervisor the log as its stderr."""
    log = tmp_path / "server.log"
    with log.open("ab") as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
    try:
        write(log, *range(50))
        os.write(2, b"Traceback\n")
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert log.read_text().endswith("Traceback\n")


def test_a_mark_holds_across_turns(tmp_path):
    log = tmp_path / "server.log"
    assert Mark.at_end(log) == Mark(None, 0)
    write(log, *range(10))
    mark = Mark.at_end(log)
    write(log, *range(10, 60))
    assert said(read_since(log, mark, 10**6)) == [f"line {number}" for number in range(10, 60)]
    assert said(read_since(log, mark, 20))[-2:] == ["line 58", "line 59"]
    assert said(read_since(log, Mark(None, 0), 10**6)) == read(log)


def test_the_last_lines_are_counted_over_all_parts(tmp_path):
    log = tmp_path / "server.log"
    write(log, *range(60))
    with ExitStack() as stack:
        lines = last_lines(open_parts(log, stack), 40, every_line)
    assert len(lines) == 40
    assert said(lines)[-1] == "line 59"


def test_the_last_run_begins_at_its_first_line_and_includes_restarts(tmp_path):
    log = tmp_path / "server.log"
    part(log, 2).write_text(f"{RUN}a, supervisor 1\nold\n")
    part(log, 1).write_text(f"older\n{RUN}b, supervisor 2\nstarted launcher 7\n")
    log.write_text("failed: x\nstarted launcher 8\n")
    with ExitStack() as stack:
        lines = lines_of_last_run(open_parts(log, stack), every_line)
    assert [line.decode() for line in lines] == [
        f"{RUN}b, supervisor 2",
        "started launcher 7",
        "failed: x",
        "started launcher 8",
    ]


LINES = b"""\
2026-01-01 10:00:00,000 [rank 0] INFO ready
2026-01-01 10:00:00,000 [rank 1] INFO ready
[rank 1] Traceback (most recent call last):
[rank 11] Traceback (most recent call last):
mlx_launch: rank 1 on mac1 exited with code 70
mlx_launch: cause: rank 1 on mac1 exited with code 70: ouch
  | ouch
mlx_launch: cause: rank 0 on mac0 exited with code 70: [rank 1] is innocent
  | other
2026-01-01 10:00:00 supervisor: failed: rank 1 on mac1""".splitlines()


def test_a_rank_is_shown_with_what_the_launcher_says_of_it():
    assert list(of_rank(1)(LINES)) == [LINES[1], LINES[2], LINES[4], LINES[5], LINES[6]]
    assert list(of_rank(0)(LINES)) == [LINES[0], LINES[7], LINES[8]]
    assert list(of_rank(11)(LINES)) == [LINES[3]]


def take(lines, count: int) -> list[str]:
    with closing(lines):
        return [next(lines).decode() for _ in range(count)]


def no_sleep(seconds: float) -> None:
    pytest.fail("nothing more to read")


def test_following_goes_on_through_several_turns_between_two_looks(tmp_path):
    log = tmp_path / "server.log"
    write(log, 0)
    with log.open("rb") as file:
        lines = follow(log, file, sleep=no_sleep)
        assert next(lines) == b"line 0"
        write(log, *range(1, 60))
        assert len(parts(log)) >= 3
        found = []
        while not found or found[-1] != "line 59":
            found += said([next(lines)])
    assert found == [f"line {number}" for number in range(1, 60)]


def test_following_waits_for_a_log_that_does_not_exist_yet(tmp_path):
    log = tmp_path / "server.log"
    lines = follow(log, None, sleep=lambda seconds: log.write_text("first\n"))
    assert take(lines, 1) == ["first"]


def test_following_starts_again_when_the_log_is_emptied(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("a long first line\n")
    slept = []

    def empty(seconds: float) -> None:
        slept.append(seconds)
        log.write_text("" if len(slept) == 1 else "b\n")

    with log.open("rb") as file:
        assert take(follow(log, file, sleep=empty), 2) == ["a long first line", "b"]


def test_parts_are_in_order_though_the_log_is_turned_twice_while_they_are_opened(
    tmp_path, monkeypatch
):
    """The part that was opened first stood before those that came after it, and was skipped."""
    log = tmp_path / "server.log"
    for number in range(2):
        log_files.turn(log)
        log.write_text(f"part {number}\n")
    real = log_files.part
    fresh = iter(range(2, 4))

    def turn_twice(path, number):
        if number == 1:  # the log itself is open by now
            monkeypatch.setattr(log_files, "part", real)
            for name in fresh:
                log_files.turn(log)
                log.write_text(f"part {name}\n")
        return real(path, number)

    monkeypatch.setattr(log_files, "part", turn_twice)
    with ExitStack() as stack:
        files = log_files.open_parts(log, stack)
        assert [file.read() for file in files] == [b"part 2\n", b"part 1\n", b"part 0\n"]


def test_following_beside_a_writer_misses_nothing(tmp_path):
    """A real race, with a part turned every few lines; fewer of them than are kept."""
    log = tmp_path / "server.log"
    write(log, 0)
    count = 3000
    follower_at = [0]

    def write_all() -> None:
        out = run_log.RunLog(log, 4000)
        for number in range(1, count):
            out.write([b"line %d" % number])
            while number - follower_at[0] > 1000:  # Not so far ahead that parts are dropped.
                time.sleep(0.001)
        out.flush()

    writer = threading.Thread(target=write_all, daemon=True)
    end = time.monotonic() + 200

    def look(seconds: float) -> None:
        assert time.monotonic() < end, "waits for lines that do not come"

    with log.open("rb") as file:
        lines = follow(log, file, sleep=look)
        writer.start()
        found: list[str] = []
        while len(found) < count:
            found += said([next(lines)])
            follower_at[0] = len(found)
    writer.join()
    assert found == [f"line {number}" for number in range(count)]


def test_names_of_parts(tmp_path):
    assert part(tmp_path / "a.log", 0) == tmp_path / "a.log"
    assert part(tmp_path / "a.log", 2) == tmp_path / "a.log.2"
    assert log_files.KEPT >= 1
