"""Makes docs/terminal.svg: two ranks of the demo model are started, asked and stopped, for real.

usage: .venv/bin/python scripts/dev/record_terminal.py FILE [--port N]

Each line appears when it did; a long wait is shown as one of PAUSE_MOST_S. Run it again when
what the scripts print has changed.
"""

import argparse
import getpass
import re
import socket
import subprocess
import time
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PORT = 8080  # of who sets none
PAUSE_MOST_S = 1.0
WIDTH_CHARS, CHAR_PX, LINE_PX, PAD_PX = 116, 8.4, 19, 14
QUESTION = (
    '{"temperature": 0, "max_tokens": 32, "messages": '
    '[{"role": "user", "content": "What is the capital of France?"}]}'
)

Line = tuple[float, str, bool]  # seconds from the beginning, text, whether it was typed


def commands(port: int) -> list[str]:
    """What is typed, in order."""
    at = "" if port == PORT else f" --port {port}"
    return [
        f"scripts/run_openai_cluster_server.sh --local 2 --detach{at}",
        f"curl -s http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json'"
        f" -d '{QUESTION}'",
        f"scripts/status.sh{at}",
        f"scripts/stop_openai_cluster_server.sh{at}",
    ]


def record(command: str, now: float) -> list[Line]:
    """Runs it, and notes when each line came. Raises CalledProcessError."""
    lines, last = [(now, f"$ {command}", True)], time.monotonic()
    with subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as running:  # fmt: skip
        for text in running.stdout:
            came = time.monotonic()
            now += min(PAUSE_MOST_S, came - last)
            last = came
            lines.append((now, text.rstrip("\n").replace(str(ROOT), "~/mlx-cluster"), False))
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return lines


def wrap(line: Line) -> list[Line]:
    """As a terminal of that width shows it."""
    at, text, typed = line
    parts = [text[i : i + WIDTH_CHARS] for i in range(0, len(text), WIDTH_CHARS)] or [""]
    return [(at, part, typed) for part in parts]


def private(lines: list[Line]) -> list[str]:
    """What the lines tell of the machine and of who uses it."""
    told = "\n".join(text for _, text, _ in lines)
    names = {socket.gethostname(), getpass.getuser(), str(Path.home())}
    found = {name for name in names if re.search(rf"\b{re.escape(name)}\b", told)}
    return sorted(found | set(re.findall(r"(?<![\w.:/~-])/(?!v1/)\w[\w.-]*", told)))


def draw(lines: list[Line]) -> str:
    """The lines as a picture that fills by itself, once."""
    rows = [part for line in lines for part in wrap(line)]
    width, height = WIDTH_CHARS * CHAR_PX + 2 * PAD_PX, len(rows) * LINE_PX + 2 * PAD_PX
    body = "\n".join(
        f'<text x="{PAD_PX}" y="{PAD_PX + (n + 0.75) * LINE_PX:.1f}"'
        f' class="{"in" if typed else "out"}" style="animation-delay:{at:.2f}s">'
        f"{escape(text)}</text>"
        for n, (at, text, typed) in enumerate(rows)
    )
    # Both ways to keep the columns of a table: some browsers know one alone.
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" xml:space="preserve"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {box}>
<title>Two ranks are started, asked, looked at and stopped</title>
<style>
text {{ font: 14px ui-monospace, Menlo, Consolas, monospace; white-space: pre }}
text {{ animation: come 0.01s both }}
.in {{ fill: #7fe3cc }} .out {{ fill: #dfe7e3 }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
@keyframes come {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
</style>
<rect width="100%" height="100%" rx="10" fill="#121614"/>
{body}
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    lines: list[Line] = []
    *others, stop = commands(options.port)
    try:
        for command in others:
            lines += record(command, lines[-1][0] + 0.8 if lines else 0.3)
    finally:
        lines += record(stop, lines[-1][0] + 0.8 if lines else 0.3)
    if found := private(lines):
        parser.error(f"not written: it would tell of this machine: {', '.join(found)}")
    options.file.write_text(draw(lines), "utf-8")


if __name__ == "__main__":
    main()
