"""Who is made ready when: lanes by size, those who wait, and those who stop waiting."""

import threading
import time

import pytest

from server.api import lanes as lanes_module
from server.api.lanes import LEAST_WAITING, SIZES, Lane, Lanes, give_back
from server.protocol.client import SERVER, Client, ClientGone
from server.protocol.errors import ApiError

DEADLINE_S = 30.0


def gone_when(event: threading.Event) -> Client:
    return Client("", gone=event.is_set)


def waiting_in(lane: Lane, count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while lane.inside < count:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_lane_lets_so_many_in_and_the_next_when_one_leaves():
    lane, order = Lane(1, None), []

    def second() -> None:
        with lane.enter(SERVER):
            order.append("second")

    with lane.enter(SERVER):
        thread = threading.Thread(target=second)
        thread.start()
        waiting_in(lane, 2)
        order.append("first leaves")
    thread.join(DEADLINE_S)
    assert order == ["first leaves", "second"] and lane.inside == 0


def test_who_leaves_waits_no_longer_and_leaves_its_place():
    lane, gone, ended = Lane(1, 1), threading.Event(), []

    def leaver() -> None:
        try:
            with lane.enter(gone_when(gone)):
                ended.append("got in")
        except ClientGone:
            ended.append("left")

    with lane.enter(SERVER):
        thread = threading.Thread(target=leaver)
        thread.start()
        waiting_in(lane, 2)
        gone.set()
        thread.join(DEADLINE_S)
        assert ended == ["left"] and lane.inside == 1


def test_whose_time_is_up_gets_504():
    lane = Lane(1, 1)
    late = Client("", timeout=5.0, deadline=time.monotonic() - 1)
    with lane.enter(SERVER), pytest.raises(ApiError) as caught, lane.enter(late):
        pass
    assert caught.value.status == 504 and "5 s" in caught.value.message


def test_one_too_many_gets_429_with_retry_after():
    lane = Lane(1, 0)
    with lane.enter(SERVER), pytest.raises(ApiError) as caught, lane.enter(SERVER):
        pass
    assert caught.value.status == 429 and "Retry-After" in caught.value.headers()
    with lane.enter(SERVER):
        pass


def test_large_bodies_keep_no_smaller_ones_waiting():
    all_lanes = Lanes(places=16)
    sizes = [most or 2**25 for most, _ in SIZES]
    with (
        all_lanes.enter(sizes[3], SERVER),
        all_lanes.enter(sizes[2], SERVER),
        all_lanes.enter(sizes[1], SERVER),
        all_lanes.enter(sizes[0], SERVER),
    ):
        late = Client("", timeout=5.0, deadline=time.monotonic() - 1)
        for size, at_once in zip(sizes, [most for _, most in SIZES], strict=True):
            if at_once == 1:
                with pytest.raises(ApiError), all_lanes.enter(size, late):
                    pass
            else:
                with all_lanes.enter(size, late):
                    pass


def test_as_many_may_wait_as_the_line_has_places():
    few, many = Lanes(places=1), Lanes(places=500)
    assert few._lanes[1][1]._most == LEAST_WAITING + SIZES[1][1]
    assert many._lanes[1][1]._most == 500 + SIZES[1][1]
    assert few._lanes[0][1]._most is None


def test_memory_of_large_bodies_is_given_back(monkeypatch):
    given = []
    monkeypatch.setattr(lanes_module, "give_back", lambda: given.append(1))
    all_lanes = Lanes(places=16)
    with all_lanes.enter(1000, SERVER):
        pass
    assert not given
    with pytest.raises(KeyError), all_lanes.enter(2**20, SERVER):
        raise KeyError  # refused in the middle
    assert given == [1]


def test_giving_back_does_no_harm_anywhere():
    give_back()
