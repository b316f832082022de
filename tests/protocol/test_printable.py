"""Whatever a client wrote reaches a log line or a terminal as printable text only."""

import logging
import subprocess
import sys
import threading

import pytest

from scripts.lib.launch.rank_process import LineCutter
from scripts.lib.status import show, show_status
from server.observe.status import Status
from server.protocol.printable import (
    MESSAGE_CHARS,
    PrintableFormatter,
    log_what_python_prints,
    printable,
    printable_line,
)
from server.protocol.settings import read_settings
from server.transport.http_server import Server
from tests.support.paths import ROOT
from tests.support.raw_http import DEADLINE_S, RawClient

HOSTILE = [
    "\x1b[31m", "\x1b]0;title\x07", "\x9b31m", "\x7f", "\b\b", "\r", "\n2026 [rank 0] INFO forged",
    "\u202e", "\u2066", "\u200b", "\u2028", "\u2029", "\x85", "\0", "\ud800", "\U000e0041", "\t",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_obeys_is_escaped(text):
    assert printable(f"a{text}b").isprintable()
    assert printable(f"a{text}b").isascii()


@pytest.mark.parametrize("text", ["", "plain", "é 漢字 \U0001f600", "C:\\x", "\\x1b", "'\""])
def test_printable_text_stays_as_it_is(text):
    assert printable(text) == text and printable_line(text.encode()) == text.encode()


def test_a_line_of_bytes_keeps_its_tabs_and_shows_what_is_no_utf_8():
    assert printable_line(b"a\tb\xff\xc2\x9b\x1b[0m") == b"a\tb\\xff\\x9b\\x1b[0m"


def formatted(act) -> list[str]:
    """The lines that a rank's log gets of what act(log) logs."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.extend(self.format(record).split("\n"))

    log, handler = logging.Logger("test"), Keep()
    handler.setFormatter(PrintableFormatter("[rank 0] %(levelname)s %(message)s"))
    log.addHandler(handler)
    act(log)
    return lines


def test_a_record_is_one_line_whatever_it_holds():
    for text in HOSTILE:
        (line,) = formatted(lambda log: log.info("asked for %s by %s", text, [text]))  # noqa: B023
        assert line.isprintable() and line.startswith("[rank 0] INFO asked for ")


def test_a_very_long_record_is_cut():
    (line,) = formatted(lambda log: log.info("%s", "x" * 10**6))
    assert len(line) < MESSAGE_CHARS + 100 and line.endswith("characters more)")


def test_a_traceback_keeps_its_lines_and_none_of_them_can_pose_as_a_record():
    def fail(log):
        try:
            raise ValueError("bad \x1b[2J\n2026 [rank 0] INFO forged\r\u2028")
        except ValueError:
            log.exception("it failed", stack_info=True)

    first, *rest = formatted(fail)
    assert first == "[rank 0] ERROR it failed" and len(rest) > 3
    assert all(line.isprintable() and line.startswith("    ") for line in rest)
    assert any("ValueError: bad \\x1b[2J" in line for line in rest)


def test_what_python_prints_by_itself_is_logged(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", True)

    def fail():
        raise RuntimeError("\x1b[2J")

    def act(log):
        log_what_python_prints(log)
        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
        logging.captureWarnings(False)

    lines = formatted(act)
    assert lines[0] == "[rank 0] CRITICAL uncaught RuntimeError in thread worker"
    assert lines[-1].endswith("RuntimeError: \\x1b[2J")


def test_the_entry_logs_through_it(capfd):
    """On every rank: the root handler is the one that all loggers of all libraries end in."""
    code = (
        "import logging, sys; sys.path.insert(0, sys.argv[1]);"
        "from server import main; main._log_as(3, logging.StreamHandler());"
        "logging.getLogger('another.library').warning('a %s', '\\x1b[31m\\n\\u202e')"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True)
    assert capfd.readouterr().err.endswith("[rank 3] WARNING a \\x1b[31m\\n\\u202e\n")


def test_a_request_s_target_and_headers_reach_no_line_of_ours_raw(tmp_path, caplog):
    """The fragment of a target was written to the log as it came."""
    from server.api.routes import App
    from server.scheduler.queue import Line

    caplog.set_level(logging.DEBUG)
    handler = logging.Handler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    settings = read_settings({"MODEL_DIR": str(tmp_path), "MODEL_ID": "x"})
    status = Status("x", "run")
    server = Server("127.0.0.1", 0, App(settings, status, Line(1, 1)))
    server.start()
    evil = b"\x1b[31m\x9b\x7f\xe2\x80\xae"
    asks = [
        b"GET /health#" + evil, b"GET /" + evil, b"GET /v1/models/" + evil,
        b"GET /v1/models/%1b%5b31m%0a", b"BR" + evil + b" /", b"POST /v1/completions#" + evil,
    ]  # fmt: skip
    for ask in asks:
        with RawClient(server.port) as client:
            client.send(
                ask + b" HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + evil + b"\r\nX-Request-Id: "
                + evil + b"\r\nOrigin: http://localhost\r\nContent-Type: " + evil
                + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )  # fmt: skip
            answer = client.read()
            assert answer.body.strip().isascii() and b"\x1b" not in answer.body
            client.rest()
    server.shutdown()
    server.server_close()
    for record in caplog.records:
        assert handler.format(record).isprintable()


def test_events_are_printable():
    status = Status("x", "run", restarts=1, last_failure="\x1b[2J\u202e")
    status.note("request failed: \r\x9b")
    assert all(text.isprintable() for _, text in status.events.events)


def test_what_the_launcher_and_the_supervisor_relay_is_printable():
    cutter = LineCutter()
    lines = cutter.feed(b"one \x1b[31m\ntwo \xc2\x9b\r\nthr") + cutter.feed(b"ee\x07\n")
    assert lines == [b"one \\x1b[31m", b"two \\x9b\\r", b"three\\x07"]


def test_the_status_is_printable(monkeypatch, capsys):
    monkeypatch.setattr(show_status, "render", lambda reports: "a\x1b[31m\nb\u202e\t")
    show_status.show([{"state": "ok", "well": True, "ranks": []}], False, None)
    assert capsys.readouterr().out == "a\\x1b[31m\nb\\u202e\\t\n"
    assert show.render([]).startswith("nothing runs")


def test_the_log_of_an_older_version_is_shown_printable(tmp_path):
    (tmp_path / "log").write_bytes(b"one \x1b[31m\n\xe2\x80\xaetwo\ttabs\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from scripts.lib.logs import show_log;"
        "show_log.write(open(sys.argv[2], 'rb').read().split(b'\\n')[:2])"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(tmp_path / "log")]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S).stdout
    assert shown == b"one \\x1b[31m\n\\u202etwo\ttabs\n"
