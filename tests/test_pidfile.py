"""The pid file by which scripts find a rank."""

import os

import pytest

from server.pidfile import remove_pidfile, write_pidfile


def test_it_holds_the_pid_and_the_run_id_in_a_folder_made_for_it(tmp_path):
    path = write_pidfile(tmp_path / "run" / "8080", 3, "run-7")
    assert path.name == "rank-3.pid"
    assert path.read_text() == f"{os.getpid()}\nrun-7\n"
    assert list(path.parent.iterdir()) == [path]  # no half-written one beside it


def test_a_stale_one_is_replaced(tmp_path):
    (tmp_path / "rank-0.pid").write_text("1\nold\n")
    assert write_pidfile(tmp_path, 0, "new").read_text().endswith("\nnew\n")


def test_it_is_removed_at_the_end(tmp_path):
    path = write_pidfile(tmp_path, 0, "run")
    remove_pidfile(path)
    assert not path.exists()
    remove_pidfile(path)  # twice is harmless
    remove_pidfile(None)


@pytest.mark.parametrize("content", ["1\nsuccessor\n", "", "\n", "rubbish"])
def test_a_successors_file_stays(tmp_path, content):
    path = write_pidfile(tmp_path, 0, "run")
    path.write_text(content)
    remove_pidfile(path)
    assert path.read_text() == content
