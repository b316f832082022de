"""Asks all who know something: the hosts through ssh, rank 0 over HTTP, and the log.

Everybody at the same time and with a deadline: a host that is down, or a rank 0 that waits in
native code, must not hide the others. Keys go to the server alone, and only after it has shown
by its run id that it is ours.
"""

import http.client
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scripts.lib.hosts.on_hosts import LOCAL_HOST, run_on_hosts
from scripts.lib.hosts.our_process import command_of, is_service, read_lines
from scripts.lib.logs.log_files import RUN_STARTS, Mark, read_since
from scripts.lib.status.facts import HostFacts, read_facts
from scripts.lib.status.servers import Server, supervisor_pid

HOST_WITHIN_S = 8.0
HTTP_WITHIN_S = 4.0  # For one answer; there are two.
LOG_BYTES = 1 << 20  # Of the log's end that are searched.
PROBE = Path(__file__).resolve().with_name("rank_facts.sh")


@dataclass(frozen=True)
class Told:
    """What rank 0 said. body is that of /cluster, or of /health if hint says why not."""

    body: Mapping[str, Any] | None = None
    problem: str = ""  # why there is no body
    refused: bool = False  # nobody listens on the port
    hint: str = ""


@dataclass(frozen=True)
class LogFacts:
    """What the log says of the last start."""

    run_id: str = ""
    restarts: int = 0
    last_failure: str = ""
    over: str = ""  # the supervisor's last word
    pausing: str = ""  # set while it waits to start again
    was_ready: bool = False  # since the last (re)start
    last_line: str = ""


@dataclass(frozen=True)
class Gathered:
    """All that is known of one server."""

    server: Server
    supervisor: int | None
    hosts: dict[str, HostFacts]
    told: Told
    log: LogFacts
    service: str = ""  # what a service that has this server last said, if it runs


def gather(server: Server, env: Mapping[str, str]) -> Gathered:
    """Ask everybody; ends within some HOST_WITHIN_S whatever they do."""
    told = [Told(problem=f"no answer within {HOST_WITHIN_S:.0f} s")]

    def ask() -> None:
        told[0] = ask_server(server, env)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    names = list(dict.fromkeys(server.hosts)) or [LOCAL_HOST]
    command = ["bash", "-s", "--", str(server.run_dir)]
    answers = run_on_hosts(names, command, within_s=HOST_WITHIN_S, stdin=PROBE.read_bytes())
    log = read_log(server.log)
    thread.join(HOST_WITHIN_S)
    hosts = {answer.host: read_facts(answer) for answer in answers}
    return Gathered(server, supervisor_pid(server), hosts, told[0], log, read_service(server))


def read_service(server: Server) -> str:
    """What service_run.py last said; nothing if it does not run."""
    pid, *text = read_lines(server.run_dir / "service.says") or [""]
    if not pid.isdecimal() or not is_service(command_of(pid)):
        return ""
    return " ".join(text)


# -- rank 0


def ask_server(server: Server, env: Mapping[str, str]) -> Told:
    """Ask /health, and, if that is this server, /cluster."""
    try:
        _, health = _get(f"{server.url}/health", "")
        if server.run_id and health.get("run_id") != server.run_id:
            return Told(problem="another server answers on this port")
        key = find_key(server, env)
        status, cluster = _get(f"{server.url}/cluster", key)
        if status == 401 and not key:
            key = _remote_key(server)
            status, cluster = _get(f"{server.url}/cluster", key)
    except ConnectionRefusedError:
        return Told(problem="nobody listens on the port", refused=True)
    except TimeoutError:
        return Told(problem=f"no answer within {HTTP_WITHIN_S:.0f} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Told(problem=f"no answer: {getattr(error, 'strerror', None) or error}")
    if status == 200:
        return Told(cluster)
    if status == 401:
        return Told(health, hint="set API_KEY or API_KEY_FILE to see tokens/s and heartbeats")
    return Told(health, hint=f"GET /cluster answered {status}")


def _get(url: str, key: str) -> tuple[int, dict[str, Any]]:
    # Not through urllib: a proxy in the environment has no say here.
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=HTTP_WITHIN_S)
    try:
        link.request("GET", parts.path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = link.getresponse()
        body = json.loads(answer.read(1 << 24))
    finally:
        link.close()
    if not isinstance(body, dict):
        raise ValueError("the answer is not an object")
    return answer.status, body


def find_key(server: Server, env: Mapping[str, str]) -> str:
    """A key that is at hand: from the environment, or from the file of a local rank 0."""
    for key in env.get("API_KEY", "").split(","):
        if key.strip():
            return key.strip()
    if env.get("API_KEY_FILE"):
        return _first_key(read_lines(Path(env["API_KEY_FILE"])))
    if server.key_file and server.hosts[:1] == (LOCAL_HOST,):
        return _first_key(read_lines(Path(server.key_file)))
    return ""


def _remote_key(server: Server) -> str:
    """The first key of the file that rank 0 reads, through ssh."""
    if not server.key_file or server.hosts[:1] in ((), (LOCAL_HOST,)):
        return ""
    command = ["cat", server.key_file]
    (answer,) = run_on_hosts(server.hosts[:1], command, within_s=HTTP_WITHIN_S)
    return _first_key(answer.output.splitlines()) if answer.code == 0 else ""


def _first_key(lines: list[str]) -> str:
    """A line holds a key and perhaps its label."""
    return next((line.split()[0] for line in lines if line.strip()), "")


# -- the log


def read_log(log: Path) -> LogFacts:
    """What the end of the log says. A log that cannot be read says nothing."""
    try:
        lines = read_since(log, Mark(None, 0), LOG_BYTES)
    except OSError:
        return LogFacts()
    return judge_log([line.decode(errors="replace") for line in lines])


def judge_log(lines: list[str]) -> LogFacts:
    """The same of lines."""
    facts: dict[str, Any] = {}
    for line in lines:
        if line.strip():
            facts["last_line"] = line.strip()
        said = re.match(r"\S+ \S+ supervisor: (.*)", line)
        if said is None:
            if line.startswith("mlx_launch: over: "):
                facts["over"] = line.removeprefix("mlx_launch: over: ")
            continue
        text = said[1]
        starts = re.match(re.escape(RUN_STARTS.decode().partition(": ")[2]) + r"([^\s,]+)", text)
        if starts:
            facts = {"run_id": starts[1], "last_line": line.strip()}
        elif text.startswith("failed: "):
            facts["last_failure"] = text.removeprefix("failed: ")
            facts["was_ready"] = False
        elif text.startswith("waiting for "):
            facts["pausing"] = text
        elif ": starting again " in text:
            facts["restarts"] = facts.get("restarts", 0) + 1
            facts["pausing"] = text
        elif text.startswith("started launcher "):
            facts["pausing"], facts["was_ready"] = "", False
        elif text.startswith("ready: "):
            facts["was_ready"] = True
        elif text.startswith("over: "):
            facts["over"] = text.removeprefix("over: ")
    return LogFacts(**facts)
