"""Work in other threads whose results come in order: against doing it one after another."""

import threading
import time
from functools import partial

import numpy as np
import pytest

from contactlm.callbacks.in_order import InOrder


class FullError(Exception):
    pass


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_as_if_one_thread_had_done_it_all(seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    taken: list[int] = []
    inside: list[int] = []

    def work(number: int, seconds: float) -> int:
        time.sleep(seconds)
        return number

    def take(number: int) -> None:
        inside.append(number)
        assert len(inside) == 1  # never two at once
        time.sleep(0.0005)
        taken.append(inside.pop())

    pool = InOrder(take, threads, most=5)
    for number in range(40):
        pool.give(partial(work, number, rng.uniform(0, 0.003)), size=int(rng.integers(1, 4)))
    pool.finish()
    assert taken == list(range(40))


def test_the_giver_waits_where_too_much_waits() -> None:
    going, taken = threading.Event(), list[int]()
    pool = InOrder(taken.append, 2, most=10)

    def work(number: int) -> int:
        going.wait(20)
        return number

    for number in range(3):
        pool.give(partial(work, number), size=3)
    late = threading.Thread(target=pool.give, args=(partial(work, 3), 3))
    late.start()
    late.join(0.1)
    assert late.is_alive() and taken == []  # 12 would be more than 10
    going.set()
    late.join(20)
    assert not late.is_alive()
    pool.give(partial(work, 4), size=99)  # larger than all that may wait: alone
    pool.finish()
    assert taken == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("where", ["work", "take"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_error_ends_it_with_what_came_before(where: str, threads: int) -> None:
    taken: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.02 if number == 2 else 0)  # later ones are ready before
        if where == "work" and number in (3, 5):
            raise FullError(number)
        return number

    def take(number: int) -> None:
        if where == "take" and number in (3, 5):
            raise FullError(number)
        taken.append(number)

    pool = InOrder(take, threads, most=100)
    with pytest.raises(FullError, match="3"):
        for number in range(8):
            pool.give(partial(work, number), size=1)
        pool.finish()
    pool.close(drop=False)
    assert taken == [0, 1, 2]


def test_what_was_begun_is_done_when_it_is_closed_and_what_was_not_is_dropped() -> None:
    begun, going, taken = threading.Event(), threading.Event(), list[int]()
    pool = InOrder(taken.append, 1, most=100)

    def work(number: int) -> int:
        begun.set()
        going.wait(20)
        return number

    for number in range(5):
        pool.give(partial(work, number), size=1)
    begun.wait(20)
    threading.Timer(0.05, going.set).start()
    pool.close()
    assert taken == [0]
