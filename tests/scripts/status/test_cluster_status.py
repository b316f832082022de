"""What status.sh makes of what hosts, rank 0 and the log tell. No ssh and no ranks here."""

import http.server
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.lib.hosts.on_hosts import Answer
from scripts.lib.status.ask import (
    Gathered,
    LogFacts,
    Told,
    ask_server,
    find_key,
    judge_log,
)
from scripts.lib.status.facts import (
    HostFacts,
    Process,
    RankRecord,
    read_age,
    read_facts,
    read_process,
)
from scripts.lib.status.judge import exit_code, report
from scripts.lib.status.servers import Server, find_servers
from scripts.lib.status.show import age, render, size

RUN = "20260101T100000-1-2"
FAILURE = "rank 1 on mac1 exited with code 137 (ended by SIGKILL)"


# -- what a host told

MAC = """\
Welcome to mac1!
fact	system	Darwin
fact	rank	1	4711	RUN	Ss   01-02:03:04 2097152 python server.py --run-id RUN
fact	rank	2	4712	RUN
fact	memsize	549755813888
fact	wired_limit_mb	0
fact	vm	Mach Virtual Memory Statistics: (page size of 16384 bytes)
fact	vm	Pages free:                               1000.
fact	vm	Pages wired down:                         2000.
fact	vm	Pages purgeable:                           100.
fact	vm	"Translation faults":                   900000.
fact	vm	Anonymous pages:                          3000.
fact	vm	Pages occupied by compressor:              500.
fact	end
"""
LINUX = """\
fact	system	Linux
fact	meminfo	MemTotal:       1000 kB
fact	meminfo	MemAvailable:    400 kB
fact	end
"""


def answer(output: str = "", code: int | None = 0, errors: str = "", host="mac1") -> Answer:
    return Answer(host, code, output, errors, 8.0)


def test_a_mac_tells_its_ranks_and_its_memory():
    facts = read_facts(answer(MAC))
    assert facts.problem == ""
    assert facts.memory_total == 512 * 2**30
    assert facts.memory_used == (2000 + 3000 + 500 - 100) * 16384
    assert facts.wired_limit_mb == 0
    assert facts.ranks[1].pid == 4711
    assert facts.ranks[1].process == Process(
        "Ss", 86400 + 2 * 3600 + 3 * 60 + 4, 2**31, "python server.py --run-id RUN"
    )
    assert facts.ranks[2] == RankRecord(4712, "RUN", None)


def test_a_linux_host_has_no_gpu_limit():
    facts = read_facts(answer(LINUX))
    assert (facts.memory_total, facts.memory_used) == (1000 * 1024, 600 * 1024)
    assert facts.wired_limit_mb is None
    assert facts.ranks == {}


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (answer(code=255, errors="ssh: connect: Connection refused\n"),
         "cannot be reached: ssh: connect: Connection refused"),
        (answer(code=None), "cannot be reached: no answer within 8 s"),
        (answer(MAC.replace("fact\tend\n", "")), "did not tell its state: exit code 0"),
        (answer(code=127, errors="bash: not found"), "did not tell its state: bash: not found"),
    ],
)  # fmt: skip
def test_a_host_that_tells_nothing_is_named_with_the_reason(told, problem):
    assert read_facts(told).problem == problem


def test_values_that_a_system_does_not_tell_are_none():
    facts = read_facts(answer("fact\tsystem\tDarwin\nfact\tmemsize\t\nfact\tvm\t\nfact\tend\n"))
    assert (facts.memory_total, facts.memory_used, facts.wired_limit_mb) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:07", 7), ("12:07", 727), ("1:00:00", 3600), ("10-00:00:01", 864001)]
)
def test_ages_of_ps(text, seconds):
    assert read_age(text) == seconds


@pytest.mark.parametrize("line", ["", "S 00:01 12", "Z 00:01 0 [python] <defunct>"])
def test_no_process_or_a_dead_one(line):
    assert read_process(line) is None


# -- what the log told


def lines(*texts: str) -> list[str]:
    return [f"2026-01-01 10:00:00 supervisor: {text}" for text in texts]


STARTS = (f"starting run {RUN}, supervisor 7", f"started launcher 8 for run {RUN}")
FAILS = (f"failed: {FAILURE}", "failure 1 in a row: starting again in 1 s")


def test_the_log_of_a_server_that_failed_and_came_back():
    log = judge_log(
        [*lines(*STARTS, "ready: yes", *FAILS, "started launcher 9 for run x", "ready: yes"), "end"]
    )
    assert log == LogFacts(RUN, 1, FAILURE, "", "", True, "end")


def test_the_log_of_a_server_that_waits_to_start_again():
    log = judge_log(lines(*STARTS, "ready: yes", *FAILS))
    assert log.pausing == FAILS[1]
    assert not log.was_ready


def test_a_new_start_makes_earlier_ones_forgotten():
    log = judge_log(lines(*STARTS, *FAILS, "over: 5 failures", "starting run new, supervisor 9"))
    assert log == LogFacts(run_id="new", last_line=lines("starting run new, supervisor 9")[0])


def test_the_last_word_may_be_the_launchers():
    log = judge_log([*lines(*STARTS), "mlx_launch: over: every rank has been ended, because ..."])
    assert log.over.startswith("every rank has been ended")


# -- what it means

HOSTS = ("mac0", "mac1")
CLUSTER = {
    "status": "ok",
    "detail": "serving",
    "model": "big",
    "run_id": RUN,
    "uptime_s": 3725.0,
    "parallel": "tensor",
    "backend": "jaccl",
    "limits": {"max_batch": 8, "queue_max": 16},
    "ranks": [
        {
            "rank": rank,
            "state": "ok",
            "heartbeat_age_s": 0.02,
            "memory_used_bytes": 200_000_000_000,
            "gpu_limit_bytes": 400_000_000_000,
            "chip": "Apple M3 Ultra",
            "os": "macOS 26.3",
        }
        for rank in (0, 1)
    ],
    "running": 3,
    "queued": 2,
    "paused": 1,
    "kv_tokens": {"used": 1000, "capacity": 5000},
    "series": {"points": [{}, {"generated_tokens_per_s": 41.25, "prompt_tokens_per_s": 300.0}]},
    "restarts": 2,
    "last_failure": FAILURE,
}


def rank_on(host: str, rank: int, state: str = "S", run_id: str = RUN, **changes) -> HostFacts:
    process = Process(state, 60, 3 * 10**9, f"python server.py --run-id {RUN} --more")
    record = RankRecord(100 + rank, run_id, process)
    values = {"system": "Darwin", "memory_total": 512 * 10**9, "memory_used": 300 * 10**9}
    return HostFacts(host, ranks={rank: record}, wired_limit_mb=0, **values | changes)


SERVER = Server(
    port=8080,
    run_dir=Path("/run"),
    hosts=HOSTS,
    run_id=RUN,
    model="big",
    url="http://mac0:8080",
    log=Path("/logs/server-8080.log"),
    key_file="",
    started=1.0,
)


def gathered(told=None, log=None, hosts=None, supervisor: int | None = 7) -> Gathered:
    return Gathered(
        SERVER,
        supervisor,
        hosts or {host: rank_on(host, rank) for rank, host in enumerate(HOSTS)},
        told or Told(CLUSTER),
        log or LogFacts(RUN, last_line="a line"),
    )


def test_a_server_that_is_well():
    one = report(gathered())
    assert (one["state"], one["well"], one["problems"]) == ("ok", True, [])
    assert exit_code([one]) == 0
    assert (one["running"], one["max_batch"], one["queued"], one["queue_max"]) == (3, 8, 2, 16)
    assert one["generated_tokens_per_s"] == 41.25
    assert (one["restarts"], one["last_failure"]) == (2, FAILURE)
    assert [rank["pid"] for rank in one["ranks"]] == [100, 101]
    assert one["hosts"][1]["chip"] == "Apple M3 Ultra"
    text = render([one])
    for words in (
        "port 8080: ok, big on 2 rank(s) (tensor, jaccl) at http://mac0:8080",
        "up 1 h 2 min, supervisor 7, restarts 2",
        "running 3 of 8, waiting 2 of 16, paused 1, 41.2 tokens/s out, 300.0 tokens/s in, KV 1000 "
        "of 5000 tokens",
        f"last failure: {FAILURE}",
        "1     mac1  ok     101  1 min 0 s  3.0 GB   200.0 GB  400.0 GB (default)  "
        "300.0 GB of 512.0 GB  0.0 s",
    ):
        assert words in text


def test_a_limit_that_was_set_is_shown_as_such():
    hosts = {"mac0": rank_on("mac0", 0), "mac1": rank_on("mac1", 1)}
    hosts["mac1"] = HostFacts("mac1", ranks=hosts["mac1"].ranks, wired_limit_mb=1000)
    one = report(gathered(hosts=hosts))
    assert one["ranks"][1]["gpu_limit_bytes"] == 1000 * 2**20
    assert "1.0 GB  " in render([one]).splitlines()[-1]


REFUSED = Told(problem="nobody listens on the port", refused=True)
SILENT = Told(problem="no answer within 4 s")
READY = LogFacts(RUN, was_ready=True, last_line="x")


@pytest.mark.parametrize(
    ("what", "state", "words"),
    [
        ({"told": Told(CLUSTER | {"status": "loading", "detail": "loading: 3.0 of 9.0 GB"})},
         "loading", "loading: 3.0 of 9.0 GB"),
        ({"told": Told(CLUSTER | {"status": "draining"})}, "draining", "serving"),
        ({"told": REFUSED}, "starting", "the ranks are being started"),
        ({"told": SILENT}, "starting", "waits for the other ranks to join it"),
        ({"told": SILENT, "log": READY}, "silent", "no answer within 4 s"),
        ({"told": REFUSED, "log": LogFacts(RUN, 1, FAILURE, pausing=FAILS[1])}, "restarting",
         f"it failed: {FAILURE}; {FAILS[1]}"),
        ({"told": Told(problem="another server answers on this port")}, "silent",
         "another server answers on this port"),
        ({"told": Told(CLUSTER | {"status": "odd"})}, "failed", "unknown status 'odd'"),
        ({"supervisor": None, "told": REFUSED}, "orphaned", "rank 0, 1 still runs"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_serve_says_why(what, state, words):
    one = report(gathered(**what))
    assert one["state"] == state
    assert words in one["detail"]
    assert words in render([one])
    assert exit_code([one]) == 1


NOBODY = {host: HostFacts(host) for host in HOSTS}


def test_a_server_whose_orphans_were_stopped_is_stopped_and_not_lost():
    """It was said to have ended without a word, after the stop script had ended what was left."""
    log = LogFacts(RUN, last_line="x")
    known = gathered(told=REFUSED, log=log, hosts=NOBODY, supervisor=None)
    one = report(replace(known, server=replace(SERVER, stopped=True)))
    assert (one["state"], one["problems"], exit_code([one])) == ("stopped", [], 3)
    assert "nothing runs (port 8080: stopped as asked" in render([one])
    alive = replace(gathered(told=REFUSED, log=log, supervisor=None), server=known.server)
    one = report(replace(alive, server=replace(SERVER, stopped=True)))
    assert one["state"] == "orphaned"  # whatever was asked


@pytest.mark.parametrize(
    ("recorded", "stopped"), [(RUN, True), ("an earlier run", False), ("", False), (None, False)]
)
def test_a_stop_counts_for_the_run_that_it_ended(tmp_path, recorded, stopped):
    folder = tmp_path / "run" / "9000"
    folder.mkdir(parents=True)
    (folder / "started_with").write_text(f"RUN_ID={RUN}\n")
    if recorded is not None:
        (folder / "stopped").write_text(f"{recorded}\n")
    assert [one.stopped for one in find_servers(tmp_path)] == [stopped]


@pytest.mark.parametrize(
    ("log", "state", "code"),
    [
        (LogFacts(RUN, over="stopped as asked", last_line="x"), "stopped", 3),
        (LogFacts(RUN, over="the ranks ended as planned", last_line="x"), "stopped", 3),
        (LogFacts(), "stopped", 3),
        (LogFacts("an earlier run", over="5 failures", last_line="x"), "stopped", 3),
        (LogFacts(RUN, over="5 failures in a row; the last: x", last_line="x"), "gave up", 1),
        (LogFacts(RUN, last_line="x"), "ended", 1),
    ],
)
def test_a_server_of_which_nothing_runs(log, state, code):
    one = report(gathered(told=REFUSED, log=log, hosts=NOBODY, supervisor=None))
    assert (one["state"], exit_code([one])) == (state, code)
    text = render([one])
    assert text.startswith("nothing runs (port 8080: ") == (code == 3)
    assert log.over in text or log.run_id != RUN


@pytest.mark.parametrize("hosts", [HOSTS, ()])
def test_a_service_that_waits_for_its_hosts_says_so(hosts):
    """After a boot nothing runs yet, and the last log ends without a word."""
    here = NOBODY | {"127.0.0.1": HostFacts("127.0.0.1")}
    says = "waiting: mac1: No route to host"
    server = replace(SERVER, hosts=hosts)
    log = LogFacts(RUN, last_line="x")
    one = report(Gathered(server, None, here, REFUSED, log, service=says))
    assert (one["state"], one["well"]) == ("waiting", False)
    assert f"its service says: {says}" in render([one])
    assert exit_code([one]) == 1


def test_ranks_that_are_not_there_yet_are_no_fault():
    one = report(gathered(told=REFUSED, hosts=NOBODY))
    assert [rank["state"] for rank in one["ranks"]] == ["awaited", "awaited"]
    assert one["problems"] == ["the ranks are being started"]


def told_of_rank(**values) -> Told:
    zero, one = CLUSTER["ranks"]
    return Told(CLUSTER | {"ranks": [zero, one | values]})


@pytest.mark.parametrize(
    ("what", "state", "words"),
    [
        ({"hosts": {"mac0": rank_on("mac0", 0), "mac1": HostFacts("mac1", "cannot be reached: x")}},
         "unknown", "mac1 cannot be reached: x"),
        ({"hosts": {"mac0": rank_on("mac0", 0), "mac1": HostFacts("mac1")}},
         "gone", "rank 1 on mac1 is gone"),
        ({"hosts": {"mac0": rank_on("mac0", 0), "mac1": rank_on("mac1", 1, "T")}},
         "stopped", "rank 1 on mac1 is stopped (SIGSTOP); kill -CONT 101"),
        ({"hosts": {"mac0": rank_on("mac0", 0), "mac1": rank_on("mac1", 1, run_id="old")}},
         "gone", "rank 1 on mac1 is gone"),
        ({"told": told_of_rank(state="silent", heartbeat_age_s=7.4)},
         "silent", "rank 1 on mac1 has been silent for 7 s"),
    ],
)  # fmt: skip
def test_a_rank_that_is_not_well_is_named_and_the_other_is_shown(what, state, words):
    one = report(gathered(**what))
    assert [rank["state"] for rank in one["ranks"]] == ["ok", state]
    assert any(words in problem for problem in one["problems"])
    assert f"! {words}" in render([one])
    assert exit_code([one]) == 1


def test_a_pid_that_went_to_another_program_is_not_our_rank():
    strange = Process("S", 5, 10**6, f"vim notes-about-{RUN}")
    hosts = {"mac0": rank_on("mac0", 0), "mac1": HostFacts("mac1", ranks={
        1: RankRecord(101, RUN, strange)})}  # fmt: skip
    one = report(gathered(hosts=hosts))
    assert (one["ranks"][1]["state"], one["ranks"][1]["pid"]) == ("gone", None)


def test_a_rank_of_an_earlier_start_is_told_apart():
    old = Process("S", 5, 10**6, "python server.py --run-id old")
    hosts = {"mac0": rank_on("mac0", 0), "mac1": HostFacts("mac1", ranks={
        1: RankRecord(101, "old", old)})}  # fmt: skip
    one = report(gathered(hosts=hosts))
    assert one["ranks"][1]["state"] == "left over"
    assert "left over from an earlier start (pid 101)" in render([one])


def test_on_a_host_that_only_computes_its_own_rank_is_shown():
    here = {"127.0.0.1": rank_on("127.0.0.1", 1)}
    server = replace(SERVER, hosts=(), run_id="")
    one = report(Gathered(server, None, here, REFUSED, LogFacts()))
    assert one["state"] == "elsewhere"
    assert [rank["rank"] for rank in one["ranks"]] == [1]
    assert exit_code([one]) == 0
    assert "started on another machine" in render([one])


def test_one_server_that_is_not_well_decides_the_exit_code():
    well, loading = report(gathered()), report(gathered(told=REFUSED))
    stopped = report(gathered(told=REFUSED, hosts=NOBODY, supervisor=None, log=LogFacts()))
    assert exit_code([well, stopped]) == 0
    assert exit_code([well, loading]) == 1
    assert exit_code([]) == 3
    assert render([]).startswith("nothing runs")
    assert render([well, stopped]) == render([well])


def test_sizes_and_ages():
    assert [size(n) for n in (None, 0, 5 * 10**6, 12 * 10**9)] == ["-", "0 MB", "5 MB", "12.0 GB"]
    assert [age(s) for s in (0.4, 61, 7261, 200000)] == ["0 s", "1 min 1 s", "2 h 1 min", "2 d 7 h"]


# -- asking rank 0


class Stub(http.server.BaseHTTPRequestHandler):
    """A rank 0 that wants a key for /cluster; run_id and what it has are set on the server."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        status, body = self.server.answers.get(self.path, (404, {}))
        if self.path == "/cluster" and self.headers.get("Authorization") != "Bearer right":
            status, body = 401, {}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def stub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.asked = []
    server.answers = {
        "/health": (503, {"run_id": RUN, "status": "loading"}),
        "/cluster": (200, CLUSTER),
    }
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def server_at(stub, **changes) -> Server:
    url = f"http://127.0.0.1:{stub.server_address[1]}"
    return replace(SERVER, url=url, hosts=("127.0.0.1",), **changes)


def test_rank_0_is_asked_with_the_key_at_hand(stub, tmp_path):
    file = tmp_path / "keys"
    file.write_text("\nright ops team\nother\n")
    for server, env in (
        (server_at(stub), {"API_KEY": "right,other"}),
        (server_at(stub), {"API_KEY_FILE": str(file)}),
        (server_at(stub, key_file=str(file)), {}),
    ):
        assert ask_server(server, env) == Told(CLUSTER)


def test_without_a_key_health_is_enough_to_tell_the_state(stub):
    told = ask_server(server_at(stub), {})
    assert told.body["status"] == "loading"
    assert "set API_KEY or API_KEY_FILE" in told.hint
    assert told.hint in render([report(gathered(told))])


def test_a_key_is_never_sent_to_another_server(stub):
    stub.answers["/health"] = (200, {"run_id": "another"})
    told = ask_server(server_at(stub), {"API_KEY": "right"})
    assert told == Told(problem="another server answers on this port")
    assert stub.asked == [("/health", None)]


def test_a_server_without_cluster_is_shown_by_its_health(stub):
    stub.answers["/cluster"] = (404, {})
    told = ask_server(server_at(stub), {"API_KEY": "right"})
    assert (told.body["status"], told.hint) == ("loading", "GET /cluster answered 404")


@pytest.mark.parametrize("answer", [(200, []), (200, None)])
def test_nonsense_is_no_answer(stub, answer):
    stub.answers["/health"] = answer
    told = ask_server(server_at(stub), {})
    assert told.body is None
    assert told.problem == "no answer: the answer is not an object"


def test_nobody_there_is_told_apart(stub):
    server = server_at(stub)
    stub.shutdown()
    stub.server_close()
    assert ask_server(server, {}).refused


def test_keys_that_cannot_be_read_are_no_keys(tmp_path):
    assert find_key(SERVER, {"API_KEY": " , ", "API_KEY_FILE": "/nowhere"}) == ""


# -- records


def test_servers_are_found_by_their_records(tmp_path):
    for port in ("8080", "9000", "empty", "07"):
        (tmp_path / "run" / port).mkdir(parents=True)
    (tmp_path / "run" / "9000" / "hosts").write_text("mac0\nmac1\n")
    (tmp_path / "run" / "9000" / "started_with").write_text(
        f"RUN_ID={RUN}\nMODEL_ID=a=b\nURL=http://mac0:9000\nLOG=/l/x.log\nAPI_KEY_FILE=\n"
    )
    (tmp_path / "run" / "8080" / "rank-1.pid").write_text("1\nx\n")
    first, second = find_servers(tmp_path)
    assert (first.port, first.hosts, first.log) == (
        8080, (), tmp_path / "logs" / "server-8080.log"
    )  # fmt: skip
    assert (second.hosts, second.model, second.url) == (HOSTS, "a=b", "http://mac0:9000")
    assert second.log == Path("/l/x.log")


def test_prefixes_on_disk_are_shown_where_there_are_any():
    disk = {"bytes": 12 * 10**9, "limit_bytes": 10**11, "hit_tokens": 345}
    text = render([report(gathered(Told(CLUSTER | {"prefix_cache": {"disk": disk}})))])
    assert "prefixes on disk 12.0 GB of 100.0 GB, 345 tokens read back" in text
    assert "on disk" not in render([report(gathered())])


def test_several_models_are_shown_by_how_they_stand_and_why():
    def model(name, state="unloaded", why="", **more):
        return {"id": name, "state": state, "why": why, "pinned": False, "size_bytes": 9e9} | more

    models = [
        model("large", "loaded", "loaded", size_bytes=412 * 10**9),
        model("small", "loaded", "loaded", pinned=True),
        model("next", "loading", "loading", loaded_share=0.456),
        model("other", "leaving", "makes room for next"),
        model("broken", why="rank 1: config.json is missing"),
        *(model(f"idle-{n:02}") for n in range(20)),
    ]
    one = report(gathered(Told(CLUSTER | {"models": models})))
    assert (one["models"], one["well"]) == (models, True)
    text = render([one])
    assert "\n  model large: loaded, 412.0 GB\n  model small: loaded, 9.0 GB, pinned\n" in text
    assert "\n  model next: loading 46%, 9.0 GB\n" in text
    assert "\n  model other: leaving, 9.0 GB: makes room for next\n" in text
    assert "\n  model broken: unloaded: rank 1: config.json is missing\n" in text
    assert "\n  not loaded: idle-00, " in text and "idle-11 and 8 more\n" in text
    # What is one server's only model is in its first line already.
    text = render([report(gathered(Told(CLUSTER | {"models": models[:1]})))])
    assert "model large" not in text
