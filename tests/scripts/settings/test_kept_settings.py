"""cluster.env: what its lines mean, what is refused, and what wins."""

import os

import pytest

from scripts.lib.settings import kept_settings
from scripts.lib.settings.kept_settings import first_key, lookup, parse_file, resolve
from server.protocol.setting import SettingError
from server.protocol.settings_table import RUN


@pytest.fixture
def keep(tmp_path):
    """Writes cluster.env; returns an environment that names it."""

    def write(text: str | bytes, mode: int = 0o600) -> dict[str, str]:
        path = tmp_path / "cluster.env"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return {"CLUSTER_ENV": str(path)}

    return write


def values(env, *options, reader=RUN) -> dict[str, tuple[str, str]]:
    found, problems = resolve(reader, env, options)
    assert problems == []
    return {one.setting.name: (one.text, one.origin) for one in found}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("QUEUE_MAX=3", "3"),
        ("  QUEUE_MAX = 3  ", "3"),
        ("QUEUE_MAX=3\r", "3"),
        ("QUEUE_MAX=3 # as many", "3"),
        ("QUEUE_MAX=3#4", "3#4"),
        ("QUEUE_MAX=", ""),
        ("QUEUE_MAX= # none", ""),
        ('QUEUE_MAX="3"', "3"),
        ("QUEUE_MAX='3' # as many", "3"),
        ('QUEUE_MAX=" a # b "', " a # b "),
        ("QUEUE_MAX='a\"b'", 'a"b'),
        ("QUEUE_MAX=a'b'", "a'b'"),
        ("QUEUE_MAX=$(touch /tmp/x) `id` $HOME \\n", "$(touch /tmp/x) `id` $HOME \\n"),
        ("QUEUE_MAX=a=b", "a=b"),
    ],
)
def test_a_line_is_taken_as_it_stands(line, text):
    assert parse_file(line.encode(), "cluster.env") == ({"QUEUE_MAX": text}, [])


def test_a_program_that_asks_for_one_setting_hears_of_a_slip_too():
    env = {"CLUSTER_ENV": "/dev/null", "HTTP_PROT": "81", "QUEUE_MAX": "3", "HTTP_PROXY": "x"}
    with pytest.raises(SettingError, match="HTTP_PROT: no such setting; did you mean HTTP_PORT"):
        lookup("HTTP_PORT", env)
    del env["HTTP_PROT"]
    assert lookup("HTTP_PORT", env) == 8080


def test_comments_empty_lines_and_a_byte_order_mark_are_nothing():
    text = "\ufeff# a comment\n\n   \n  # QUEUE_MAX=1\nQUEUE_MAX=2"
    assert parse_file(text.encode(), "cluster.env") == ({"QUEUE_MAX": "2"}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("QUEUE_MAXX=3", "line 1: QUEUE_MAXX: no such setting; did you mean QUEUE_MAX?"),
        ("\nqueue_max=3", "line 2: queue_max: no such setting; did you mean QUEUE_MAX?"),
        ("ZZZ=1", "line 1: ZZZ: no such setting: hostfiles/cluster.env.template has all"),
        ("PATH=/tmp", "line 1: PATH: no such setting"),
        ("LD_PRELOAD=/tmp/x.so", "line 1: LD_PRELOAD: no such setting"),
        ("SUPERVISOR_RESTARTS=1", "line 1: SUPERVISOR_RESTARTS: no such setting"),
        ("CLUSTER_ENV=/other", "line 1: CLUSTER_ENV: no such setting"),
        ("export QUEUE_MAX=3", "line 1: must be NAME=value"),
        ("QUEUE_MAX 3", "line 1: must be NAME=value"),
        ("=3", "line 1: must be NAME=value"),
        ("QUEUE_MAX='3", "line 1: QUEUE_MAX: must end with the quote it begins with"),
        ("QUEUE_MAX='3'4", "line 1: QUEUE_MAX: must end with the quote it begins with"),
        ("QUEUE_MAX=1\nQUEUE_MAX=2", "line 2: QUEUE_MAX: is there twice"),
        (b"QUEUE_MAX=\xff", "must be UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, problem):
    data = text if isinstance(text, bytes) else text.encode()
    _, problems = parse_file(data, "cluster.env")
    assert len(problems) == 1 and problems[0].startswith("cluster.env")
    assert problem in problems[0]


def test_an_option_wins_over_the_environment_and_that_over_the_file(keep):
    env = keep("QUEUE_MAX=1\nMAX_BATCH=2\nREQ_TIMEOUT=3\n") | {"QUEUE_MAX": "4", "MAX_BATCH": "5"}
    got = values(env, "QUEUE_MAX=6", "OTHER=7")
    assert got["QUEUE_MAX"] == ("6", "--env")
    assert got["MAX_BATCH"] == ("5", "environment")
    assert got["REQ_TIMEOUT"] == ("3", "cluster.env")
    assert got["STALL_TIMEOUT"] == ("", "default")
    assert "OTHER" not in got


def test_empty_counts_as_not_set_everywhere(keep):
    got = values(keep("QUEUE_MAX=1\nMAX_BATCH=\n") | {"QUEUE_MAX": " "}, "QUEUE_MAX=")
    assert got["QUEUE_MAX"] == ("1", "cluster.env")
    assert got["MAX_BATCH"] == ("", "default")


def test_zero_says_none_and_wins_over_the_file(keep):
    assert values(keep("CONTEXT_MAX=4096") | {"CONTEXT_MAX": "0"})["CONTEXT_MAX"][0] == "0"


def test_paths_of_the_file_are_meant_from_its_folder(keep, tmp_path):
    env = keep("MODEL_DIR=models/x\nLOG_DIR=~/logs\nPYTHON=python3\nCONDA_EXE=bin/conda\n")
    got = values(env)
    assert got["MODEL_DIR"][0] == f"{tmp_path}/models/x"
    assert got["LOG_DIR"][0] == os.path.expanduser("~/logs")
    assert got["PYTHON"][0] == "python3"
    assert got["CONDA_EXE"][0] == f"{tmp_path}/bin/conda"


def test_a_wrong_value_of_the_file_says_where_it_stands(keep):
    _, problems = resolve(RUN, keep("QUEUE_MAX=many\nMAX_BATCH=0\n"))
    assert sorted(problems) == [
        "MAX_BATCH='0': must be a whole number from 1 to 1024 (from cluster.env)",
        "QUEUE_MAX='many': must be a whole number from 0 to 100000 (from cluster.env)",
    ]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_in_a_file_that_others_may_read_is_refused_and_not_shown(keep, mode):
    env = keep("API_KEY=sk-secret\n", mode)
    _, problems = resolve(RUN, env)
    assert len(problems) == 1 and "API_KEY" in problems[0] and "chmod 600" in problems[0]
    assert "sk-secret" not in problems[0]
    with pytest.raises(SettingError, match="chmod 600"):
        first_key(env)


def test_a_private_file_may_hold_a_key_and_an_open_one_anything_else(keep):
    assert values(keep("API_KEY=a, b\n"))["API_KEY"] == ("a,b", "cluster.env")
    assert values(keep("QUEUE_MAX=1\n#API_KEY=x\nAPI_KEY=\n", 0o644))["QUEUE_MAX"][0] == "1"


def test_clients_send_the_first_key_of_the_environment_else_of_the_file(keep):
    env = keep("API_KEY=kept, other\n")
    assert first_key(env) == "kept"
    assert first_key(env | {"API_KEY": "given"}) == "given"
    assert first_key({"CLUSTER_ENV": os.devnull}) == ""


def test_a_file_that_is_named_must_be_there_and_be_a_file(tmp_path):
    with pytest.raises(kept_settings.MissingFile, match="none.env"):
        resolve(RUN, {"CLUSTER_ENV": str(tmp_path / "none.env")})
    with pytest.raises(SettingError):
        resolve(RUN, {"CLUSTER_ENV": str(tmp_path)})


def test_a_huge_file_is_not_read(keep):
    with pytest.raises(SettingError, match="at most 65536 bytes"):
        resolve(RUN, keep("#" * 70_000))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingError, match="no file"):
        resolve(RUN, {"CLUSTER_ENV": str(tmp_path / "pipe")})


def test_the_checkout_s_own_file_is_read_if_it_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(kept_settings, "ROOT", tmp_path)
    assert values({})["QUEUE_MAX"] == ("", "default")
    (tmp_path / "cluster.env").write_text("QUEUE_MAX=7\n")
    assert values({})["QUEUE_MAX"] == ("7", "cluster.env")
