"""What PREFIX_WARM names, read before anything starts; what is wrong is named by file and line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.api import warm_files
from server.api.warm_files import read_warm
from server.protocol.exit_codes import CONFIG
from server.protocol.setting import SettingError
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.request_bodies import SERVED


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str | bytes) -> str:
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


def asks(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def said(*files: str) -> list[tuple[str, str, bool]]:
    """Line, first message and kind of each."""
    return [
        (one.origin.rpartition(":")[2], one.request.messages[0]["content"], one.instructions)
        for one in read_warm(files, SERVED)
    ]


def test_texts_and_requests_are_read_in_order(write):
    files = (
        write("system.txt", "You are kind.\nBe short.\n"),
        write("one.json", "\n\n" + json.dumps(asks("one"), indent=1)),
        write("many.json", '[\n {"messages": [{"role": "user", "content": "],"}]}\n,\n'
              ' {"messages":\n[{"role": "user", "content": "b"}]}]'),
        write("lines.jsonl", f"{json.dumps(asks('c'))}\n\n{json.dumps(asks('d'))}\r\n"),
    )  # fmt: skip
    assert said(*files) == [
        ("1", "You are kind.\nBe short.\n", True),
        ("3", "one", False),
        ("2", "],", False),
        ("4", "b", False),
        ("1", "c", False),
        ("3", "d", False),
    ]
    assert said() == []


def test_a_request_has_tools_and_variables_as_over_http(write):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = asks("x", tools=[tool], chat_template_kwargs={"deep": True}, model="any name")
    (one,) = read_warm((write("a.json", json.dumps(body)),), SERVED)
    assert one.request.tools[0]["function"]["name"] == "f"
    assert one.request.template_kwargs["deep"] is True


@pytest.mark.parametrize(
    ("name", "text", "line", "says"),
    [
        ("a.txt", "", ":1", "empty"),
        ("a.txt", " \n ", ":1", "empty"),
        ("a.json", "[]", ":1", "empty"),
        ("a.txt", b"one\ntwo\nth\xffree", ":3", "UTF-8"),
        ("a.json", "{\n\n 'a': 1}", ":3", "JSON"),
        ("a.json", "null", ":1", "null"),
        ("a.json", "5", ":1", "JSON object"),
        ("a.json", '[\n5]', ":2", "JSON object"),
        ("a.json", "[" * 100_000, ":1", "JSON"),
        ("a.json", "{}", ":1", "messages"),
        ("a.json", "[{},\n" + json.dumps(asks("x", nonsense=1)) + "]", ":1", "messages"),
        ("a.json", f"[{json.dumps(asks('x'))},\n{json.dumps(asks('x', top_p=7))}]", ":2", "top_p"),
        ("a.jsonl", f"{json.dumps(asks('x'))}\n{{", ":2", "JSON"),
        ("a.jsonl", f"{json.dumps(asks('x'))}\n[]", ":2", "JSON object"),
        ("a.jsonl", f"\n\n{json.dumps(asks('x', temperature='hot'))}", ":3", "temperature"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_file_and_line(write, name, text, line, says):
    file = write(name, text)
    with pytest.raises(SettingError) as caught:
        read_warm((file,), SERVED)
    message = str(caught.value)
    assert message.startswith(f"PREFIX_WARM: {file}{line}: must be ") and says in message


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "none.txt", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SettingError, match=f"PREFIX_WARM: {file}: must be a file"):
            read_warm((str(file),), SERVED)


def test_a_path_must_not_depend_on_where_rank_0_is():
    with pytest.raises(SettingError, match="PREFIX_WARM: a.txt: must be an absolute path"):
        read_warm(("a.txt",), SERVED)


def test_files_and_prompts_have_limits(write, monkeypatch):
    monkeypatch.setattr(warm_files, "BYTES_MOST", 100)
    monkeypatch.setattr(warm_files, "PROMPTS_MOST", 2)
    with pytest.raises(SettingError, match="MiB"):
        read_warm((write("a.txt", "x" * 101),), SERVED)
    files = tuple(write(f"{n}.txt", "x") for n in range(3))
    assert len(read_warm(files[:2], SERVED)) == 2
    with pytest.raises(SettingError, match="2.txt:1: must be at most 2 prompts"):
        read_warm(files, SERVED)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_rank_0_ends_before_it_starts_anything(write, tmp_path, rank):
    """Other ranks need not have the files. Here none has MLX, either, which comes later."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("")
    file = write("a.jsonl", f"{json.dumps(asks('x'))}\n{{")
    settings = {"MODEL_DIR": str(tmp_path), "HTTP_PORT": str(free_port()), "MLX_RANK": rank}
    done = subprocess.run(
        [sys.executable, ROOT / "server" / "openai_cluster_server.py"],
        env=os.environ | settings | {"PYTHONPATH": str(tmp_path), "PREFIX_WARM": file},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == CONFIG, done.stderr
    last = done.stderr.splitlines()[-1]
    assert (f"PREFIX_WARM: {file}:2: must be JSON" in last) == (rank == "0"), last
