import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedgym.experiments.idle import IdleTime

NAMES = ("a", "b", "driver")


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_shares_are_those_worked_out_by_hand():
    clock = Clock()
    idle = IdleTime(idle=["a"], busy=["driver"], clock=clock)
    clock.now_s = 2
    idle.ends("a")
    clock.now_s = 3
    with idle.during("driver"):
        clock.now_s = 8
    idle.begins("a")
    clock.now_s = 10
    assert idle.read() == {"seconds": 10, "driver": 0.5, "a": 0.4}  # a: 2 s before, 2 s after; driver: 5 s
    clock.now_s = 14  # a has had nothing to do since before the reading
    assert idle.read() == {"seconds": 4, "driver": 0, "a": 1}
    assert idle.read()["seconds"] == 0
    assert IdleTime(clock=clock).read() == {}, "nobody works"


EVENTS = st.tuples(st.integers(0, 9), st.sampled_from(NAMES), st.sampled_from(["begins", "ends", "read"]))


@given(st.lists(EVENTS, max_size=30))
def test_any_order_of_events_gives_the_shares_of_a_second_by_second_account(events):
    clock, state = Clock(), dict.fromkeys(NAMES, True)
    idle, tally, total_s = IdleTime(idle=NAMES, clock=clock), Counter(), 0
    for wait_s, name, what in [*events, (1, "a", "read")]:
        clock.now_s += wait_s
        total_s += wait_s
        tally.update({each: wait_s for each in NAMES if state[each]})
        if what != "read":
            getattr(idle, what)(name)
            state[name] = what == "begins"
            continue
        found = idle.read()
        assert found.pop("seconds") == pytest.approx(total_s)
        for each in NAMES if total_s else ():
            assert found[each] == pytest.approx(tally[each] / total_s) and 0 <= found[each] <= 1
        tally, total_s = Counter(), 0


def test_threads_may_share_it():
    idle = IdleTime(busy=NAMES)

    def work(name):
        for _ in range(500):
            with idle.during(name):
                assert all(0 <= share <= 1 for share in list(idle.read().values())[1:])

    threads = [threading.Thread(target=work, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    idle.read()
    assert {name: idle.read()[name] for name in NAMES} == dict.fromkeys(NAMES, 0.0)
