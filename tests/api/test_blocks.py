"""An answer's parts as a row of blocks."""

from hypothesis import given
from hypothesis import strategies as st

from server.api.dialects.blocks import Blocks
from server.protocol.pieces import CallPiece, Parts
from tests.support.played import SCRIPTS


def walk(parts: list[Parts], cut: bool = False) -> tuple[Blocks, list[tuple[str, int, str]]]:
    blocks = Blocks()
    steps = []
    for part in parts:
        steps += [(s.act, s.block.index, s.text) for s in blocks.add(part)]
    steps += [(s.act, s.block.index, s.text) for s in blocks.end(cut=cut)]
    return blocks, steps


def kinds(name: str) -> list[tuple[str, str]]:
    blocks, _ = walk([piece.parts for piece in SCRIPTS[name]])
    return [(block.kind, block.text) for block in blocks.all]


def test_whitespace_around_thinking_makes_no_block_of_its_own():
    assert kinds("empty reasoning") == [("text", "\n\nSo")]
    assert kinds("reasoning then text") == [("reasoning", "\nI think\n"), ("text", "\n\nSo")]


def test_whitespace_between_calls_makes_no_block():
    assert kinds("two calls") == [("call", '{"a": 1}'), ("call", '{"a": 2}')]


def test_an_answer_of_nothing_is_one_block_of_text():
    assert kinds("nothing") == [("text", "")]
    assert kinds("only a line feed") == [("text", "\n")]


def test_only_the_last_block_of_a_cut_answer_is_incomplete():
    blocks, _ = walk([Parts(reasoning="r"), Parts("t")], cut=True)
    assert [block.status for block in blocks.all] == ["completed", "incomplete"]


def test_text_after_a_call_is_a_new_block():
    call = Parts(calls=(CallPiece(0, "id", "f", "{}"),))
    blocks, _ = walk([Parts("a"), call, Parts("b")])
    assert [block.kind for block in blocks.all] == ["text", "call", "text"]


words = st.text(alphabet="ab \n", max_size=3)


@given(st.lists(st.builds(Parts, words, words)))
def test_each_block_opens_grows_and_closes_before_the_next(parts):
    blocks, steps = walk(parts)
    place, open_now, texts = -1, False, {}
    for act, index, text in steps:
        if act == "open":
            assert not open_now and index == place + 1
            place, open_now, texts[index] = index, True, ""
        else:
            assert open_now and index == place
            texts[index] += text
            open_now = act != "close"
    assert not open_now
    assert [texts[i] for i in range(len(blocks.all))] == [block.text for block in blocks.all]
    for kind, told in (("text", "text"), ("reasoning", "reasoning")):
        letters = "".join(getattr(part, told) for part in parts).split()
        told_letters = "".join(b.text for b in blocks.all if b.kind == kind).split()
        assert "".join(told_letters) == "".join(letters)
