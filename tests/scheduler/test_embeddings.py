"""Requests for embeddings among others: whose inputs are on the ranks, and how they end."""

import math

import numpy as np

from server.engine.turn import Turn
from server.protocol.events import Embedded, Failed, Prefilled, Token
from server.protocol.requests import Common
from server.scheduler.embeddings import AT_ONCE, IN_FLIGHT, IN_TURN, TOKENS_IN_FLIGHT
from server.scheduler.queue import Ticket
from server.wire.messages import Cancel, Submit
from tests.support.scheduler_desk import Desk

VECTOR = np.ones(3, dtype=np.float32)


def ask(desk: Desk, *lengths: int) -> Ticket:
    """A request with inputs of these lengths."""
    ticket = Ticket([], 0, Common(), inputs=[[1 + i] * n for i, n in enumerate(lengths)])
    desk.line.admit([ticket])
    return ticket


def embeds(messages) -> list[Submit]:
    return [message for message in messages if isinstance(message, Submit) and message.embed]


def events(ticket: Ticket) -> list:
    found = []
    while not ticket.events.empty():
        found.append(ticket.events.get())
    return found


def over(desk: Desk, messages: list[Submit]) -> None:
    desk.deliver([(message.uid, Embedded(VECTOR)) for message in messages])


def test_each_input_is_a_prompt_of_its_own_and_says_which_it_was():
    desk = Desk()
    ticket = ask(desk, 3, 1, 2)
    sent = embeds(desk.compose())
    assert [message.prompt for message in sent] == [[2], [3, 3], [1, 1, 1]]  # alike ones together
    assert {m.max_tokens for m in sent} == {1} and not any(m.store or m.keep for m in sent)
    assert desk.counts() == (1, 0)
    desk.deliver([(sent[0].uid, Prefilled(1, 1)), (sent[0].uid, Embedded(VECTOR))])
    assert [place for place, _ in events(ticket)] == [1, 1]
    assert desk.line.held() == 1
    over(desk, sent[1:])
    assert [place for place, _ in events(ticket)] == [2, 0]
    assert desk.line.held() == 0 and desk.counts() == (0, 0) and not desk.compose()


def test_they_take_no_slot_of_those_that_decode():
    desk = Desk(max_running=2)
    ask(desk, *[1] * 100)
    desk.admit(3)
    sent = desk.compose()
    assert len(embeds(sent)) == IN_FLIGHT and len(sent) == IN_FLIGHT + 2
    assert desk.counts() == (3, 1)


def test_as_one_is_done_another_goes():
    desk = Desk()
    ticket = ask(desk, *[1] * 100)
    done, sent = 0, embeds(desk.compose())
    while sent:
        over(desk, sent[:3])
        done, sent = done + len(sent[:3]), sent[3:] + embeds(desk.compose())
        assert len(sent) <= IN_FLIGHT
    assert done == 100 and {place for place, _ in events(ticket)} == set(range(100))
    assert desk.line.held() == 0


def test_a_long_one_goes_alone():
    """A prompt that comes then waits for one of them, and not for sixteen."""
    desk = Desk()
    ask(desk, TOKENS_IN_FLIGHT, 2 * TOKENS_IN_FLIGHT, 1)
    (short,) = embeds(desk.compose())
    assert len(short.prompt) == 1
    over(desk, [short])
    for length in (TOKENS_IN_FLIGHT, 2 * TOKENS_IN_FLIGHT):
        (long,) = embeds(desk.compose())
        assert len(long.prompt) == length
        over(desk, [long])
    assert desk.line.held() == 0


def test_requests_take_turns_and_few_are_begun():
    desk = Desk(max_waiting=20)
    large = ask(desk, *[1] * 1000)
    small = [ask(desk, 2) for _ in range(AT_ONCE + 1)]
    of = {}
    while sum(len(seen) for seen in of.values()) < 3 * IN_FLIGHT:
        sent = embeds(desk.compose())
        assert desk.counts()[0] <= AT_ONCE
        for message in sent:
            of.setdefault(len(message.prompt), []).append(message)
        over(desk, sent)
    assert all(one.events.qsize() == 1 for one in small)
    assert large.events.qsize() >= IN_TURN
    assert desk.line.held() == 1


def test_who_comes_again_and_again_keeps_nobody_waiting():
    desk = Desk(max_waiting=50)
    large = ask(desk, *[1] * 200)
    for _ in range(100):
        ask(desk, *[1] * IN_TURN)
        over(desk, embeds(desk.compose()))
    assert desk.line._held.get(large.uid) is None


def test_a_client_that_leaves_takes_its_inputs_along():
    desk = Desk()
    ticket = ask(desk, *[1] * 100)
    sent = embeds(desk.compose())
    other = ask(desk, 5)
    desk.line.cancel(ticket)
    messages = desk.compose()
    cancelled = {m.uid for m in messages if isinstance(m, Cancel)}
    assert cancelled == {message.uid for message in sent}
    assert not any(m.keep for m in messages if isinstance(m, Cancel))
    assert [len(m.prompt) for m in embeds(messages)] == [5]
    assert desk.line.held() == 1 and other.uid in desk.line._held
    over(desk, sent)  # what was on its way
    assert not events(ticket)


def test_a_client_that_leaves_before_it_begins():
    desk = Desk()
    tickets = [ask(desk, *[1] * 50) for _ in range(3)]
    desk.line.cancel(tickets[2])
    desk.compose()
    assert desk.line.held() == 2


def test_one_that_fails_ends_its_request_and_no_other():
    desk = Desk()
    ticket, other = ask(desk, 3, 3), ask(desk, 4)
    sent = embeds(desk.compose())
    desk.scheduler.deliver(Turn([], [], refused=[(sent[0].uid, ValueError("bad"))]))
    ((_, event),) = events(ticket)
    assert isinstance(event, Failed) and event.error.status == 500
    desk.line.cancel(ticket)  # as its thread does then
    desk.compose()
    over(desk, sent[1:])
    assert other.events.qsize() == 1 and desk.line.held() == 0


def test_memory_is_waited_for_in_order_on_both_sides():
    desk = Desk(max_running=4, capacity=1024)
    (first,) = desk.admit(prompt=[1] * 500, max_tokens=10)
    desk.compose()
    waits = ask(desk, 600)
    assert desk.scheduler.starved == math.inf
    assert not desk.compose()
    assert desk.scheduler.starved == waits.uid
    (second,) = desk.admit(prompt=[1] * 5, max_tokens=10)
    assert not desk.compose()  # the input is first, and the younger prompt does not overtake it
    desk.line.cancel(first)
    sent = desk.compose() + desk.compose()
    assert [len(m.prompt) for m in sent if isinstance(m, Submit)] == [600, 5]
    (third,) = desk.admit(prompt=[1] * 700, max_tokens=10)
    ask(desk, 3)
    assert not desk.compose()  # and the younger input not the prompt
    assert desk.scheduler.starved == third.uid
    desk.line.cancel(second)
    over(desk, embeds(sent))
    assert [len(m.prompt) for m in desk.compose() if isinstance(m, Submit)] == [700, 3]


def test_one_that_is_taken_off_for_memory_comes_again():
    desk = Desk(max_running=4, capacity=1024)
    desk.admit(prompt=[1] * 500, max_tokens=500)
    (running,) = desk.compose()
    ticket = ask(desk, 255)
    sent = embeds(desk.compose())
    assert sent
    taken = []
    while not taken:
        desk.deliver([(running.uid, Token(1, None))])
        taken = [m for m in desk.compose() if isinstance(m, Cancel)]
    assert [m.uid for m in taken] == [sent[0].uid] and not events(ticket)
    desk.deliver([(running.uid, Token(1, "stop"))])
    again = embeds(desk.compose())
    assert [m.prompt for m in again] == [m.prompt for m in sent]
    over(desk, again)
    assert ticket.events.qsize() == 1 and desk.line.held() == 0


def test_while_any_is_left_the_ranks_do_not_nap():
    desk = Desk()
    ask(desk, 3)
    sent = desk.compose()
    assert desk.scheduler.nap_ms() == 0
    over(desk, embeds(sent))
    desk.compose()
    assert desk.scheduler.nap_ms() > 0
