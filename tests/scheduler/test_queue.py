"""The line between HTTP threads and the engine: its bounds, its end, and its tickets."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.protocol.errors import ApiError, unavailable
from server.protocol.events import Failed, Prefilled, Scored, Token
from server.protocol.requests import Common
from server.scheduler.queue import Line, Ticket
from tests.support.ticket_events import all_events, next_event


def ticket() -> Ticket:
    return Ticket([1, 2], 10, Common())


def choices(count: int) -> list[Ticket]:
    """Tickets of one prompt and one request: the first, which has the others as followers."""
    first = ticket()
    first.followers = [
        Ticket(first.prompt, 10, Common(), choice=n, events=first.events) for n in range(1, count)
    ]
    return [first, *first.followers]


def test_tickets_are_taken_in_the_order_of_arrival():
    line = Line(2, 2)
    tickets = [ticket() for _ in range(4)]
    for one in tickets:
        line.admit([one])
    assert line.take() == tickets
    assert line.take() == []
    assert len({one.uid for one in tickets}) == 4


def test_a_full_line_is_429_until_a_ticket_is_released():
    line = Line(max_running=1, max_waiting=2)
    held = [ticket() for _ in range(3)]
    for one in held:
        line.admit([one])
    with pytest.raises(ApiError) as caught:
        line.admit([ticket()])
    error = caught.value
    assert error.status == 429
    assert (error.type, error.code) == ("rate_limit_exceeded", "rate_limit_exceeded")
    assert "1 requests running and 2 waiting" in error.message
    assert error.headers()["Retry-After"] == "5"
    line.take()
    with pytest.raises(ApiError):  # taken is not released
        line.admit([ticket()])
    line.release(held[1])
    line.admit([ticket()])


@pytest.mark.parametrize(("estimate", "said"), [(0.01, "1"), (7.2, "8"), (1e9, "60")])
def test_retry_after_is_the_estimate_within_bounds(estimate, said):
    line = Line(1, 0, lambda: estimate)
    line.admit([ticket()])
    with pytest.raises(ApiError) as caught:
        line.admit([ticket()])
    assert caught.value.headers()["Retry-After"] == said


def test_no_places_to_wait_still_lets_the_running_ones_in():
    line = Line(2, 0)
    line.admit([ticket()])
    line.admit([ticket()])
    with pytest.raises(ApiError):
        line.admit([ticket()])


def test_a_burst_gets_exactly_the_places_there_are():
    line = Line(4, 6)
    start = threading.Barrier(40)

    def arrive(_) -> int:
        start.wait()
        try:
            line.admit([ticket()])
        except ApiError as error:
            return error.status
        return 200

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(arrive, range(40)))
    assert answers.count(200) == 10 and answers.count(429) == 30
    assert len(line.take()) == line.held() == 10


def test_arrivals_cancels_and_closing_wake_the_engine():
    line = Line(1, 1)
    one = ticket()
    for act in (
        lambda: line.admit([one]),
        lambda: line.cancel(one),
        lambda: line.close(unavailable("draining", "draining")),
    ):
        line.arrived.clear()
        act()
        assert line.arrived.is_set()


def test_a_cancelled_ticket_keeps_its_place_until_the_engine_lets_go():
    line = Line(1, 0)
    one = ticket()
    line.admit([one])
    line.cancel(one)
    assert one.cancelled.is_set() and line.held() == 1
    line.release(one)
    line.release(one)  # twice is harmless
    assert line.held() == 0


def test_a_closed_line_refuses_newcomers_and_keeps_the_others():
    line = Line(2, 2)
    one = ticket()
    line.admit([one])
    line.close(unavailable("The server is draining.", "draining"))
    for _ in range(3):
        with pytest.raises(ApiError) as caught:
            line.admit([ticket()])
        assert (caught.value.status, caught.value.code) == (503, "draining")
    assert line.held() == 1 and line.take() == [one]
    assert next_event(one) is None


def test_a_refusal_does_not_remember_all_refusals_before_it():
    """One shared exception: its traceback grew with every raise, and held every request's frame."""
    line = Line(1, 0)
    line.close(unavailable("draining", "draining"))
    for _ in range(50):
        with pytest.raises(ApiError) as caught:
            line.admit([ticket()])
    depth, frame = 0, caught.value.__traceback__
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    assert depth < 5


def test_fail_all_answers_everything_held_and_closes():
    line = Line(1, 2)
    tickets = [ticket() for _ in range(3)]
    for one in tickets:
        line.admit([one])
    line.take()
    error = unavailable("The server is restarting.", "shutting_down")
    line.fail_all(error)
    assert [next_event(one) for one in tickets] == [Failed(error)] * 3
    assert line.held() == 0
    with pytest.raises(ApiError) as caught:
        line.admit([ticket()])
    assert caught.value.status == 503
    line.fail_all(error)
    assert next_event(tickets[0]) is None  # told once


def test_a_ticket_is_unanswered_until_the_http_side_says_so():
    line = Line(1, 1)
    one, two = ticket(), ticket()
    line.admit([one])
    line.admit([two])
    with pytest.raises(ApiError):
        line.admit([ticket()])
    line.release(one)  # the engine is done; the answer may still be on its way
    assert line.unanswered() == 2
    line.answered(one)
    line.answered(one)
    assert line.unanswered() == 1
    line.fail_all(unavailable("restarting", "shutting_down"))
    assert (line.held(), line.unanswered()) == (0, 1)
    line.answered(two)
    assert line.unanswered() == 0


def test_events_come_in_order_and_an_empty_queue_gives_nothing():
    one = ticket()
    assert next_event(one) is None
    events = [Scored(()), Prefilled(1, 2), Prefilled(2, 2), Token(5, None), Token(6, "stop")]
    for event in events:
        one.put(event)
    assert [next_event(one) for _ in events] == events


def test_choices_share_a_queue_and_say_whose_event_it_is():
    first, second, third = choices(3)
    third.put(Token(3, None))
    first.put(Token(1, None))
    second.put(Token(2, "stop"))
    assert all_events(second) == [(2, Token(3, None)), (0, Token(1, None)), (1, Token(2, "stop"))]
    assert all_events(first) == []


def test_choices_are_taken_together_and_count_one_by_one():
    line = Line(2, 2)
    first, second, third = choices(3)
    line.admit([first])
    assert line.held() == line.unanswered() == 3
    assert line.take() == [first] and first.followers == [second, third]
    line.release(second)
    line.answered(second)
    assert line.held() == line.unanswered() == 2


def test_of_several_tickets_all_are_admitted_or_none():
    line = Line(2, 3)
    line.admit([ticket(), ticket()])
    for too_many in ([choices(4)[0]], [ticket() for _ in range(4)], [choices(2)[0], choices(2)[0]]):
        with pytest.raises(ApiError) as caught:
            line.admit(too_many)
        assert caught.value.status == 429
        assert "2 requests running and 0 waiting" in caught.value.message
        assert (line.held(), line.unanswered()) == (2, 2)
    assert len(line.take()) == 2
    line.admit([choices(2)[0], ticket()])
    assert line.held() == 5 and len(line.take()) == 2


def test_more_choices_than_there_will_ever_be_room_for_are_400():
    line = Line(2, 1)
    for tickets in ([choices(4)[0]], [choices(2)[0], choices(2)[0]]):
        with pytest.raises(ApiError) as caught:
            line.admit(tickets)
        assert caught.value.status == 400
        assert "4 choices" in caught.value.message and "3 at most" in caught.value.message
    assert line.held() == 0 and line.take() == []
    line.admit([choices(3)[0]])


def test_fail_all_answers_every_choice():
    line = Line(1, 4)
    every = choices(3)
    line.admit(every[:1])
    line.take()
    error = unavailable("The server is restarting.", "shutting_down")
    line.fail_all(error)
    assert all_events(every[0]) == [(n, Failed(error)) for n in range(3)]
    assert line.held() == 0
