"""What one rank fails at alone, all ranks hear of, in the same words and at the same moment."""

import threading

import pytest

from server.startup import splitting
from server.startup.agreement import Found, agree, agree_aside, agree_by_pieces
from server.startup.piece_pace import Considerate, Failed, at_once
from tests.support.linked import on_links


def test_a_failure_that_one_rank_has_is_named_by_it():
    def life(link):
        def act():
            if link.rank == 1:
                raise MemoryError("no room")

        return agree(link, act, Exception)

    assert on_links(2, life) == ["rank 1: MemoryError: no room"] * 2


def test_one_that_all_have_is_told_as_it_is():
    def life(link):
        def act():
            raise Found("the file is no model")

        return agree(link, act)

    assert on_links(2, life) == ["the file is no model"] * 2


def test_a_thread_may_take_as_long_as_it_will_while_all_give_way():
    began = threading.Event()

    def life(link):
        def act():
            if link.rank == 1:
                assert began.wait(60)
                raise OSError("no such disk")

        turns = 0
        pieces = agree_aside(link, act, lambda: True)
        try:
            while True:
                next(pieces)
                turns += 1
                if turns == 3:
                    began.set()
        except StopIteration as done:
            return turns, done.value

    (mine, said), theirs = on_links(2, life)
    assert (mine, said) == theirs and mine >= 3
    assert said == "rank 1: OSError: no such disk"


def test_pieces_that_fail_are_told_when_they_do():
    def life(link):
        def pieces():
            yield
            raise Found("wrong")

        return at_once(agree_by_pieces(link, pieces()))

    assert on_links(2, life) == ["wrong"] * 2


@pytest.mark.parametrize("what", ["_decide", "load"])
def test_a_rank_that_cannot_read_a_model_leaves_no_other_waiting(tmp_path, monkeypatch, what):
    """It went back to its turns, and the others waited for it in the midst of theirs."""
    other = threading.local()

    def broken(folder):
        if other.rank == 1:
            raise OSError("Input/output error")
        return {} if what == "_decide" else (None, {})

    name = "read_weights" if what == "_decide" else "load_lazy"
    monkeypatch.setattr(splitting, name, broken)
    if what == "load":
        one = splitting.Arrangement(splitting.TENSOR)
        monkeypatch.setattr(splitting, "_decide", lambda *arguments: (one,))
    else:
        monkeypatch.setattr(splitting, "arrangements", lambda *arguments: ())
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    def life(link):
        other.rank = link.rank
        pace = Considerate(0.1, lambda: False)
        try:
            at_once(splitting.load_split(tmp_path, "auto", link, (), lambda stage: None, pace))
        except Failed as error:
            return str(error)

    assert on_links(2, life) == ["rank 1: OSError: Input/output error"] * 2
