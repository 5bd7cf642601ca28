"""Requests take turns: in order, so many at a time, and none for who has given up."""

import threading
import time
from concurrent import futures

import pytest
from waiting import until

from serving.embedded.turns import Turns, seconds_left
from serving.refusal import Refusal


@pytest.fixture
def clients():
    with futures.ThreadPoolExecutor(8) as pool:
        yield pool


def test_those_who_wait_come_in_their_order_and_too_many_are_refused(clients):
    turns, leave, order = Turns(1, 3), threading.Event(), []

    def take(number):
        with turns.turn():
            order.append(number)
            assert leave.wait(10)

    waiting = []
    for number in range(4):
        waiting.append(clients.submit(take, number))
        until(lambda number=number: (turns.waiting, len(order)) == (number, 1))
    with pytest.raises(Refusal, match="UNAVAILABLE: The queue of this server is full: 3 requests wait already"):
        take(9)
    leave.set()
    futures.wait(waiting, 10)
    assert order == [0, 1, 2, 3]
    with turns.turn():
        assert turns.waiting == 0


def test_a_turn_is_passed_on_by_who_has_given_up(clients):
    turns, leave = Turns(1, 9), threading.Event()

    def hold():
        with turns.turn():
            assert leave.wait(10)

    def run(**options):
        with turns.turn(**options):
            return "ran"

    holding = clients.submit(hold)
    until(lambda: turns._free == 0)
    gone = clients.submit(run, cancelled=lambda: True)
    until(lambda: turns.waiting == 1)
    with pytest.raises(Refusal, match="DEADLINE_EXCEEDED"):
        run(deadline=time.monotonic() + 0.05)
    last = clients.submit(run, deadline=time.monotonic() + 10)
    until(lambda: turns.waiting == 2)
    leave.set()
    holding.result(10)
    with pytest.raises(Refusal, match="CANCELLED"):
        gone.result(10)
    assert last.result(10) == "ran"
    with pytest.raises(Refusal, match="DEADLINE_EXCEEDED"):
        run(deadline=time.monotonic() - 1)
    assert run() == "ran"


def test_any_deadline_is_one_that_a_lock_can_wait_for():
    event = threading.Event()
    event.set()
    for deadline in (None, float("inf"), time.monotonic() + 3e11, time.monotonic(), 0.0):
        assert event.wait(seconds_left(deadline))
    assert seconds_left(time.monotonic() - 5) == 0
