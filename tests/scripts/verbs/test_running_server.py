"""Which running server a client of ours talks to, and that every verb means the same one."""

import argparse
import subprocess
import sys

import pytest

from scripts.lib.logs import show_log
from scripts.lib.status import servers
from scripts.lib.verbs import running_server, verb_settings
from scripts.lib.verbs.parser import Parser


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout of which nothing runs, and no word about a server anywhere."""
    monkeypatch.setattr(running_server, "ROOT", tmp_path)
    monkeypatch.setenv("CLUSTER_ENV", "/dev/null")
    for name in ("HTTP_PORT", "API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def start(root):
    """Records a server; with a name of a pid file, one of its processes runs."""
    processes = []

    def record(port: int, runs: str = "") -> None:
        folder = root / "run" / str(port)
        folder.mkdir(parents=True)
        (folder / "started_with").write_text(f"RUN_ID=run-{port}\nURL=http://127.0.0.1:{port}\n")
        if runs:
            code = "import time; print(1, flush=True); time.sleep(600)"
            words = [sys.executable, "-c", code, "--run-id", f"run-{port}"]
            processes.append(subprocess.Popen(words, stdout=subprocess.PIPE))
            processes[-1].stdout.readline()
            (folder / runs).write_text(f"{processes[-1].pid}\nrun-{port}\n")

    yield record
    for process in processes:
        process.kill()
        process.wait()


def found(*words: str) -> argparse.Namespace:
    parser = Parser("soak.py", "Usage: soak.py")
    running_server.add_server(parser)
    options = parser.parse_args(words)
    running_server.find_server(parser, options)
    return options


@pytest.mark.parametrize("process", ["supervisor.pid", "rank-0.pid"])
def test_the_one_that_runs_is_found_and_told(start, process, capsys):
    start(18500)
    start(18600, process)
    assert found().url == "http://127.0.0.1:18600"
    assert capsys.readouterr().err == "soak.py: port 18600: http://127.0.0.1:18600\n"


def test_a_port_or_a_url_wins_and_nothing_is_told(start, monkeypatch, capsys):
    start(18500, "supervisor.pid")
    start(18600, "supervisor.pid")
    assert found("--port", "18500").url == "http://127.0.0.1:18500"
    assert found("--url", "http://elsewhere:1").url == "http://elsewhere:1"
    monkeypatch.setenv("HTTP_PORT", "18600")
    assert found().url == "http://127.0.0.1:18600"
    assert capsys.readouterr().err == ""


def test_a_port_that_is_kept_is_honoured(start, root, monkeypatch):
    start(18500, "supervisor.pid")
    start(18600)
    (root / "cluster.env").write_text("HTTP_PORT=18600\n")
    monkeypatch.setenv("CLUSTER_ENV", str(root / "cluster.env"))
    assert found().url == "http://127.0.0.1:18600"


@pytest.mark.parametrize("ask", [found, None], ids=["soak", "logs"])
def test_several_are_listed_and_a_port_asked_for(start, root, ask, capsys):
    start(18500, "supervisor.pid")
    start(18600, "rank-1.pid")
    with pytest.raises(SystemExit) as ended:
        ask() if ask else verb_settings.choose_server(show_log.PROGRAM, None, root)
    assert ended.value.code == 2
    told = "several servers run here, on ports 18500, 18600: name one with --port"
    assert told in capsys.readouterr().err


def test_bash_is_told_the_same(start, root, capsys):
    assert servers.main([str(root)]) == 0
    assert capsys.readouterr().out == "servers\n"
    start(18500)
    assert servers.main([str(root)]) == 0
    assert capsys.readouterr().out == "servers\n18500\nport 18500: the last one\n"
    assert servers.main(["--running", str(root)]) == 0
    assert capsys.readouterr().out == "servers\n"
    start(18600, "rank-0.pid")
    assert servers.main([str(root)]) == 0
    assert capsys.readouterr().out == "servers\n18600\nport 18600: the one that runs\n"
    start(18700, "supervisor.pid")
    assert servers.main([str(root)]) == 2
    assert "on ports 18600, 18700: name one with --port" in capsys.readouterr().out


def test_without_any_it_is_said_how_to_name_one(root, capsys):
    with pytest.raises(SystemExit) as ended:
        found()
    assert ended.value.code == 2
    assert "name one with --url" in capsys.readouterr().err
