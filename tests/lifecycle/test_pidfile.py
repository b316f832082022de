"""The pid file by which scripts find a rank."""

import errno
import os
import queue
import threading
from pathlib import Path

import pytest

from server.lifecycle import pidfile
from server.lifecycle.pidfile import keep_pidfile, remove_pidfile, write_pidfile
from server.observe.health import describe_health
from server.observe.status import Status
from server.observe.views import Trouble

DEADLINE_S = 60


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


REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]


@pytest.mark.parametrize("refusal", REFUSALS, ids=[errno.errorcode[n] for n in REFUSALS])
@pytest.mark.parametrize("step", ["mkdir", "write_text", "replace"])
def test_a_disk_that_takes_no_file_is_named_and_asked_again(tmp_path, monkeypatch, refusal, step):
    """The rank died of it, five times in half a minute, and the service was over."""
    run_dir = tmp_path / "run"
    plain, write = getattr(Path, step), pidfile.write_pidfile
    full, looked, first = [True], threading.Event(), threading.current_thread()

    def refuse(path, *rest, **named):
        if full[0]:
            raise OSError(refusal, os.strerror(refusal))
        return plain(path, *rest, **named)

    def attempt(*arguments):
        if threading.current_thread() is not first:
            assert looked.wait(DEADLINE_S)  # the folder is not looked at in the midst of a write
        return write(*arguments)

    monkeypatch.setattr(Path, step, refuse)
    monkeypatch.setattr(pidfile, "write_pidfile", attempt)
    monkeypatch.setattr(pidfile, "TRY_AGAIN_S", 0.01)
    told: queue.Queue[str] = queue.Queue()
    path = keep_pidfile(run_dir, 2, "run-7", told.put)
    assert told.get(timeout=DEADLINE_S) == f"cannot write {path}: {os.strerror(refusal)}"
    assert not run_dir.exists() or list(run_dir.iterdir()) == []  # no half-written one
    remove_pidfile(path)  # there is none, and that does no harm
    looked.set()
    full[0] = False
    assert told.get(timeout=DEADLINE_S) == ""
    assert path.read_text() == f"{os.getpid()}\nrun-7\n"


def test_health_tells_of_it_beside_what_it_does():
    status = Status("m", "run")
    status.phases.serve()
    status.publish(Trouble("cannot write rank-0.pid: No space left on device"))
    told = describe_health(status.look())["detail"]
    assert told == "serving; cannot write rank-0.pid: No space left on device"
    status.publish(Trouble(""))
    assert describe_health(status.look())["detail"] == "serving"
