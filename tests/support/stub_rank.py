"""A rank without a model: it leaves, prints and serves /health as a test tells it to.

Run under scripts/lib/launch/mlx_launch.py. A test orders things by a file RUN_DIR/do-N (N is the
rank), holding one Python statement list; names it can use: leave(code), say(text), os,
time, sys. Every order and signal is noted in RUN_DIR/seen-N.
"""

import argparse
import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

RANK = int(os.environ["MLX_RANK"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--port", type=int, help="rank 0 answers GET /health here")
    parser.add_argument("--stubborn", action="store_true", help="take no notice of SIGTERM")
    parser.add_argument("--lease", type=float, help="leave after so many s without a newline")
    parser.add_argument("--at-start", default="", help="statements, in every rank")
    return parser.parse_args()


ARGS = parse()
RECORD = ARGS.run_dir / f"rank-{RANK}.pid"


def note(text: str) -> None:
    with open(ARGS.run_dir / f"seen-{RANK}", "a") as file:
        file.write(f"{text}\n")


def leave(code: int) -> None:
    RECORD.unlink(missing_ok=True)
    sys.stdout.flush()
    os._exit(code)


def say(text: str) -> None:
    print(text, flush=True)


def on_term(signum: int, frame: object) -> None:
    note(signal.Signals(signum).name)
    if not ARGS.stubborn:
        leave(0)


def follow_lease() -> None:
    renewed = [time.monotonic()]

    def read() -> None:
        while True:
            try:
                data = os.read(0, 4096)
            except OSError as error:  # A terminal that hung up says this instead of nothing.
                note(f"stdin: {error.strerror}")
                leave(69)
            if not data:
                note("stdin: end of file")
                leave(69)
            renewed[0] = time.monotonic()
            note("lease")
            if data.strip():
                note(f"told {data.decode().strip()}")

    threading.Thread(target=read, daemon=True).start()
    while True:
        time.sleep(0.2)
        if time.monotonic() - renewed[0] > ARGS.lease:
            note("lease ran out")
            leave(69)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        told = {
            "status": "ok",
            "run_id": ARGS.run_id,
            "pid": os.getpid(),
            "restarts": os.environ.get("SUPERVISOR_RESTARTS"),
            "last_failure": os.environ.get("SUPERVISOR_LAST_FAILURE"),
        }
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGHUP, on_term)
    fresh = ARGS.run_dir / f"fresh-{RANK}"
    fresh.write_text(f"{os.getpid()}\n{ARGS.run_id}\n")
    fresh.replace(RECORD)
    exec(ARGS.at_start)
    if ARGS.lease:
        threading.Thread(target=follow_lease, daemon=True).start()
    if ARGS.port and RANK == 0:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", ARGS.port), Health)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    say(f"rank {RANK} is up")
    order = ARGS.run_dir / f"do-{RANK}"
    while True:
        time.sleep(0.05)
        if order.exists():
            text = order.read_text()
            order.unlink()
            note(text)
            exec(text)


main()
