"""When a lease counts as dead: only before eyes that never looked away."""

from __future__ import annotations

import pytest

from streamkeep.storage import Lease, Owner
from streamkeep.storage.rules.leases import LeaseWatch

ONE, TWO = Owner(1, 1), Owner(2, 1)


def _watch() -> LeaseWatch:
    return LeaseWatch(lease_seconds=9, max_gap_seconds=5)


# Each script is what scans saw, as (second, beat or None for a scan that failed), and when the lease was called dead.
@pytest.mark.parametrize(
    ("scans", "dead_at"),
    [
        pytest.param([(0, 1), (2, 1), (4, 1), (6, 1), (8, 1), (10, 1)], [10], id="silent for a whole lease"),
        pytest.param([(0, 1), (3, 1), (6, 1), (9, 1)], [9], id="exactly a lease"),
        pytest.param([(0, 1), (3, 1), (6, 1), (8.9, 1)], [], id="just short of a lease"),
        pytest.param([(0, 1), (3, 2), (6, 3), (9, 4), (12, 5)], [], id="alive"),
        pytest.param([(0, 1), (4, 1), (8, 2), (12, 2), (16, 2)], [], id="late, but alive"),
        pytest.param([(0, 1), (4, 1), (8, 2), (12, 2), (16, 2), (17, 2)], [17], id="late once, then dead"),
        pytest.param([(0, 1), (20, 1), (22, 1)], [], id="we were away ourselves"),
        pytest.param([(0, 1), (20, 1), (24, 1), (28, 1), (29, 1)], [29], id="away, then a whole lease of silence"),
        pytest.param([(0, 1), (4, 1), (8, None), (8.5, 1), (10, 1)], [], id="a scan failed"),
        pytest.param(
            [(0, 1), (4, None), (5, 1), (9, 1), (13, 1), (14, 1)], [14], id="counting starts after the failure"
        ),
        pytest.param([(0, 1), (5, 1), (10, 1)], [10], id="a gap as long as it may be"),
        pytest.param([(0, 1), (5.1, 1), (10, 1)], [], id="a gap too long"),
        pytest.param(
            [(0, 5), (4, 4), (8, 4), (12, 4), (13, 4)], [13], id="a beat that goes back is a sign of life too"
        ),
        pytest.param([(0, 1), (4, 1), (8, 1), (12, 1), (13, 1)], [12, 13], id="dead stays dead until recovered"),
    ],
)
def test_a_lease_is_dead_after_a_whole_lease_of_silence_under_our_eyes(
    scans: list[tuple[float, int | None]], dead_at: list[float]
) -> None:
    watch = _watch()
    found = []
    for second, beat in scans:
        if beat is None:
            watch.lost_contact()
        elif watch.scan([Lease(ONE, beat)], now=second):
            found.append(second)
    assert found == dead_at


def test_leases_are_told_apart_by_owner_and_epoch() -> None:
    watch = _watch()
    for second in (0, 3, 6):
        assert watch.scan([Lease(ONE, 1), Lease(TWO, second)], now=second) == []
    again = Lease(Owner(1, 2), 1)
    assert watch.scan([Lease(ONE, 1), Lease(TWO, 9), again], now=9) == [Lease(ONE, 1)]


def test_a_lease_that_went_and_came_back_is_new() -> None:
    watch = _watch()
    watch.scan([Lease(ONE, 1)], now=0)
    watch.scan([], now=4)
    watch.scan([Lease(ONE, 1)], now=8)
    assert watch.scan([Lease(ONE, 1)], now=12) == []


def test_the_first_scan_after_a_long_outage_calls_nobody_dead() -> None:
    """The database was away for everybody, so every beat stood still."""
    watch = _watch()
    leases = [Lease(ONE, 1), Lease(TWO, 1)]
    watch.scan(leases, now=0)
    watch.scan(leases, now=3)
    watch.lost_contact()
    assert watch.scan(leases, now=25) == []
    assert watch.scan([Lease(ONE, 2), Lease(TWO, 1)], now=29) == []
    assert watch.scan([Lease(ONE, 3), Lease(TWO, 1)], now=33) == []
    assert watch.scan([Lease(ONE, 4), Lease(TWO, 1)], now=34) == [Lease(TWO, 1)]
