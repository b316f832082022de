"""Conversations as clients have them: of each prompt only what is new is computed, and never more
than mlx_lm.server would compute. With caches that can be cut, and with some that cannot."""

import random

import pytest

from server.protocol.requests import Places
from tests.support.talk import PLAIN, Talk

KINDS = {"cut": "llama", "states": "qwen3_5", "window": "gpt_oss"}
MARKS = 80  # tokens of a turn's marks: a token is a byte here
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "A tool.", "parameters": {"type": "object"}},
    }
    for name in ("r", "w")
]
THOUGHT = "so\n</think>\n\n"
CALL = '<tool_call>\n{"name": "r", "arguments": {"n": %d}}\n</tool_call>'


# No more than states can windows be cut.
@pytest.fixture(
    params=[
        KINDS["cut"], KINDS["states"], pytest.param(KINDS["window"], marks=pytest.mark.thorough),
    ],
    ids=KINDS,
)  # fmt: skip
def talk(request, tmp_path):
    return Talk(tmp_path, request.param)


def text(seed: int, length: int = 100) -> str:
    rng = random.Random(seed)
    return "t" + "".join(rng.choices("abcdefg ", k=length)) + "."


def system(seed: int = 0, length: int = 400) -> dict:
    return {"role": "system", "content": text(seed, length)}


def user(seed: int, length: int = 100) -> dict:
    return {"role": "user", "content": text(seed, length)}


def said(content: str, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def call(n: int, **more) -> dict:
    called = {"type": "function", "function": {"name": "r", "arguments": {"n": n}}}
    return said("", tool_calls=[called], **more)


def result(seed: int) -> dict:
    return {"role": "tool", "content": text(seed)}


def check(seen: tuple[int, int, int], new: int) -> int:
    """new: characters that are not in any earlier prompt. Returns the tokens that are reused."""
    prompt, cached, peers = seen
    assert cached >= peers, f"of {prompt} tokens {cached} are reused, by mlx_lm.server {peers}"
    assert prompt - cached <= new + MARKS, f"{prompt - cached} tokens are computed for {new}"
    return cached


def test_a_conversation_computes_the_last_answer_and_what_is_said_next(talk):
    messages = [system(), user(1)]
    talk.ask(messages)
    for turn in range(2, 5):
        messages += [said("said"), user(turn)]
        check(talk.ask(messages), 100 + len("said"))


@pytest.mark.parametrize("thinks", [False, True], ids=["thoughts left out", "thoughts sent back"])
def test_a_chain_of_calls_computes_one_step_at_a_time(talk, thinks):
    messages = [system(), user(1)]
    for step in range(3):
        seen = talk.ask(messages, THOUGHT + CALL % step, tools=TOOLS)
        if step:
            check(seen, 100 + (0 if thinks else len(CALL)))
        reasoning = {"reasoning_content": "so"} if thinks else {}
        messages += [call(step, **reasoning), result(step)]
    talk.ask(messages, THOUGHT + "done", tools=TOOLS)
    # The template drops what was thought, so all of the chain is written otherwise.
    chain = sum(len(m["content"]) + len(CALL) + MARKS for m in messages[2:])
    messages += [said("done"), user(2)]
    check(talk.ask(messages, tools=TOOLS), 100 + chain)
    messages += [said("said"), user(3)]
    check(talk.ask(messages, tools=TOOLS), 100 + len("said"))


def test_a_second_user_computes_no_system_prompt(talk):
    talk.ask([system(), user(1)])
    check(talk.ask([system(), user(2)]), 100)


def test_agents_that_share_system_and_tools_compute_them_once(talk):
    first, second = [system(), user(1)], [system(), user(2)]
    talk.ask(first, tools=TOOLS)
    check(talk.ask(second, tools=TOOLS), 100)
    for turn in range(2):  # and do not disturb each other
        for agent in (first, second):
            agent += [said("said"), user(10 + turn)]
            check(talk.ask(agent, tools=TOOLS), 100 + len("said"))


def test_an_agent_goes_on_after_its_sub_agents(talk):
    main = [system(), user(1)]
    talk.ask(main, tools=TOOLS)
    for turn in range(2):
        sub = [system(5), user(20 + turn)]
        for step in range(2):
            seen = talk.ask(sub, THOUGHT + CALL % step)
            if step or turn:
                check(seen, 100 + len(CALL))
            sub += [call(step), result(step)]
        main += [said("said"), user(10 + turn)]
        check(talk.ask(main, tools=TOOLS), 100 + len("said"))


def test_an_edited_last_message_computes_that_message(talk):
    messages = [system(), user(1), said("said"), user(2), said("said"), user(3)]
    for end in (2, 4, 6):
        talk.ask(messages[:end])
    for edit in (4, 5):
        check(talk.ask([*messages[:-1], user(edit)]), 100)


def test_the_last_message_of_a_conversation_from_elsewhere_can_be_edited(talk):
    messages = [system(), user(1), said("said"), user(2), said("said"), user(3)]
    talk.ask(messages)
    check(talk.ask([*messages[:-1], user(4)]), 100)


def test_an_answer_that_is_asked_for_again_computes_one_token(talk):
    messages = [system(), user(1), said("said"), user(2)]
    talk.ask(messages)
    for _ in range(2):
        prompt, cached, peers = talk.ask(messages, THOUGHT + "other")
        assert cached == prompt - 1 >= peers


def test_a_last_line_that_changes_each_turn_costs_no_system_prompt(talk):
    """Such as the date. What comes after it must be computed again."""
    talk.ask([system(), user(1)])
    for minute in range(2):
        dated = {"role": "system", "content": f"{text(7, 400)}\nIt is 12:0{minute}."}
        seen = talk.ask([dated, user(1)])
        if minute:
            check(seen, 100 + len("It is 12:00."))


def test_a_template_that_keeps_thinking_computes_no_answer_again(talk):
    kept = {"template_kwargs": {"preserve_thinking": True}}
    messages = [system(), user(1)]
    talk.ask(messages, THOUGHT + text(50), **kept)
    for turn in range(2, 4):
        messages += [said(text(48 + turn), reasoning_content="so"), user(turn)]
        check(talk.ask(messages, THOUGHT + text(49 + turn), **kept), 100)


def test_a_template_without_thinking_computes_no_answer_again(tmp_path):
    talk = Talk(tmp_path, KINDS["states"], PLAIN)
    messages = [system(), user(1)]
    talk.ask(messages, "said")
    for turn in range(2, 5):
        messages += [said("said"), user(turn)]
        check(talk.ask(messages, "said"), 100)
    check(talk.ask([*messages[:-1], user(9)], "said"), 100)


def test_the_answers_are_those_without_reuse(talk):
    messages = [system(), user(1)]
    for turn in range(5):
        ours, alone = talk.ticket(messages), talk.ticket(messages)
        alone.places = Places()
        assert talk.desk.run(ours) == talk.bare.run(alone)
        assert bool(ours.cached) == bool(turn)
        messages += [said("said"), user(10 + turn)]
    edited = [*messages[:-1], user(30)]
    assert talk.desk.run(talk.ticket(edited)) == talk.bare.run(talk.ticket(edited))


def test_conversations_in_little_memory_lose_what_saves_the_least(tmp_path):
    """Several go on by turns, in room for a few of their places: each still computes little more
    than its own turn, and the system prompt that they share stays."""
    talk = Talk(tmp_path, KINDS["states"], room=4 * 2000)
    talks = [[system(), user(n)] for n in range(3)]
    for turn in range(5):
        for n, messages in enumerate(talks):
            prompt, cached, _ = talk.ask(messages)
            assert cached >= (400 if turn or n else 0)
            if turn:
                assert prompt - cached <= 3 * (100 + MARKS), f"turn {turn}"
            messages += [said("said"), user(10 * turn + n)]
    index = talk.desk.scheduler._prefixes
    assert index.evicted_tokens and index.used <= 4 * 2000
    assert talk.ask([system(), user(99)])[1] >= 400
