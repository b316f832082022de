"""Large texts in a child process: the same ids, limits that hold, and an end at any time."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.protocol.client import SERVER, Client, ClientGone
from server.protocol.errors import ApiError
from server.text import encode_child, encoder
from server.text.encoder import Encoder, Unavailable

DEADLINE_S = 60.0
TEXT = (
    "The capital of France is Paris.\n\n\u4e2d\u6587 \U0001f600 <|im_start|>user\t x = [1, 2]\r\n"
)


@pytest.fixture(scope="module")
def tokenizer(demo_model_dir):
    from mlx_lm.tokenizer_utils import load

    return load(demo_model_dir)._tokenizer


@pytest.fixture
def large(tokenizer):
    one = Encoder(tokenizer)
    yield one
    one.close()


def ask(large: Encoder, text: str, client: Client = SERVER) -> list[int]:
    return large.encode(text, False, client, "prompt")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ids_are_those_of_the_tokenizer(large, tokenizer):
    text = TEXT * 5000
    for special in (False, True):
        right = tokenizer.encode(text, add_special_tokens=special)
        assert large.encode(text, special, SERVER, "prompt") == right
    assert ask(large, "") == [] and large.started == 1


def test_a_text_that_makes_the_child_large_is_its_last(large, monkeypatch, tmp_path):
    """So its memory is the system's again; rank 0 never had it."""
    _child_with(monkeypatch, tmp_path, KEPT_BYTES=100 * 2**20)
    ask(large, "hello")
    pid = large.pid()
    assert ask(large, ". " * 2**20)
    assert large.pid() is None and not alive(pid)
    assert ask(large, "hello") and large.started == 2


def test_a_client_that_leaves_ends_the_work(large):
    ask(large, "hello")
    pid, asked = large.pid(), threading.Event()

    def gone() -> bool:
        asked.set()
        return True

    with pytest.raises(ClientGone):
        ask(large, "a" * 2**23, Client("", gone=gone))
    assert asked.is_set() and not alive(pid)
    assert ask(large, "hello") and large.started == 2


def test_a_deadline_ends_the_work(large):
    ask(large, "hello")
    pid = large.pid()
    with pytest.raises(ApiError) as caught:
        ask(large, "a" * 2**23, Client("", timeout=3.0, deadline=time.monotonic()))
    assert caught.value.status == 504 and not alive(pid)


def test_who_waits_for_the_child_may_leave(large):
    ask(large, "hello")
    with large._lock, pytest.raises(ClientGone):
        ask(large, "hello", Client("", gone=lambda: True))
    assert large.started == 1


def test_a_text_that_needs_too_much_memory_is_400(large, monkeypatch, tmp_path):
    _child_with(monkeypatch, tmp_path, MEMORY_BYTES=300 * 2**20)
    with pytest.raises(ApiError) as caught:
        ask(large, ". " * 2**22)
    assert (caught.value.status, caught.value.param) == (400, "prompt")
    assert "300 MB to tokenize" in caught.value.message
    assert ask(large, "hello") and large.started == 2


def test_a_text_that_needs_too_much_of_a_core_is_400(large, monkeypatch, tmp_path):
    _child_with(monkeypatch, tmp_path, TEXT_CPU_S=0.2)
    with pytest.raises(ApiError) as caught:
        ask(large, "a" * 2**23)
    assert caught.value.status == 400 and "0.2 s to tokenize" in caught.value.message


def test_a_killed_child_is_503_and_the_next_text_has_another(large):
    ask(large, "hello")
    os.kill(large.pid(), signal.SIGKILL)
    with pytest.raises(ApiError) as caught:
        ask(large, TEXT)
    assert caught.value.status == 503 and "Retry-After" in caught.value.headers()
    assert ask(large, TEXT) and large.started == 2


def test_a_stopped_child_is_noticed_and_ended(large, monkeypatch):
    """Nobody would be served any more otherwise, and each would wait until its deadline."""
    ask(large, "hello")
    pid = large.pid()
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patch, pytest.raises(ApiError) as caught:
        patch.setattr(encoder, "SILENCE_S", 1.0)
        ask(large, TEXT)
    assert caught.value.status == 503 and not alive(pid)
    assert ask(large, TEXT)


@pytest.mark.thorough
def test_a_working_child_is_not_taken_for_a_stopped_one(large, monkeypatch):
    ask(large, "hello")  # while it starts it says nothing
    monkeypatch.setattr(encoder, "SILENCE_S", 4 * encode_child.ALIVE_S)
    assert len(ask(large, "a" * 2**22)) > 0


def test_a_tokenizer_that_does_more_than_its_library_is_found_out(tokenizer):
    """Some have their own encode(), of which the library's part knows nothing."""
    own = SimpleNamespace(
        backend_tokenizer=tokenizer.backend_tokenizer,
        encode=lambda text, add_special_tokens: [1, *tokenizer.encode(text)],
    )
    for unfit in (Encoder(own), Encoder(SimpleNamespace())):
        for _ in range(2):
            with pytest.raises(Unavailable):
                ask(unfit, "hello")
        assert unfit.pid() is None and unfit.started <= 1


def test_a_lone_surrogate_is_no_text(large):
    with pytest.raises(UnicodeEncodeError):
        ask(large, "\ud800")


def _child_with(monkeypatch, tmp_path, **limits: float) -> None:
    """The child's own file, with other limits; here they are told in the refusals."""
    source = Path(encode_child.__file__).read_text("utf-8")
    for name, value in limits.items():
        monkeypatch.setattr(encode_child, name, value)
        line = next(one for one in source.splitlines() if one.startswith(f"{name} = "))
        source = source.replace(line, f"{name} = {value!r}")
    file = tmp_path / "encode_child.py"
    file.write_text(source, encoding="utf-8")
    monkeypatch.setattr(encode_child, "__file__", str(file))
