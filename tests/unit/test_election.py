"""Who leads: an election on a lease that does what the test says, and time that passes when it says so."""

from __future__ import annotations

import asyncio

import pytest

from llmsched.errors import BackendError
from llmsched.model.records import Leader
from llmsched.runtime.replicas.election import Election

OTHER = Leader(7, "process 1 on there", "http://there", "secret", 12, True)


class FakeLease:
    """Looks come as fast as the loop turns."""

    seconds = 0.0

    def __init__(self, leader: Leader = OTHER) -> None:
        self.epoch: int | None = None
        self.leader = leader
        self.is_free = False
        self.is_ours = True
        self.is_away = False
        self.renewals: list[int] = []
        self.closed = False
        self.asked = asyncio.Event()

    def _answer(self) -> None:
        self.asked.set()
        if self.is_away:
            raise BackendError("the database does not answer")

    async def take(self) -> bool:
        self._answer()
        self.epoch = 8 if self.is_free else None
        return self.is_free

    async def renew(self, active_jobs: int) -> bool:
        self._answer()
        self.renewals.append(active_jobs)
        return self.is_ours

    async def look(self) -> Leader:
        return self.leader

    async def close(self) -> None:
        self.closed = True


class Gateway:
    def __init__(self, lease: FakeLease) -> None:
        self.lease = lease
        self.risen: list[int] = []
        self.fallen: list[BaseException] = []
        self.fault: Exception | None = None
        self.election = Election(lease, rise=self.rise, active_jobs=lambda: 5, fall=self.fallen.append)

    async def rise(self, epoch: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.risen.append(epoch)

    async def looks(self, count: int = 3) -> None:
        for _ in range(count):
            self.lease.asked.clear()
            await self.lease.asked.wait()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(FakeLease())


async def test_who_comes_first_leads_when_it_has_started(gateway: Gateway) -> None:
    gateway.lease.is_free = True
    await gateway.election.start()
    assert (gateway.election.leads, gateway.election.leader, gateway.risen) == (True, None, [8])
    await gateway.looks()
    assert set(gateway.lease.renewals) == {5}
    assert gateway.election.known_jobs() == 5
    await gateway.election.stop()
    assert gateway.lease.closed


async def test_the_next_one_follows_until_the_lease_is_free(gateway: Gateway) -> None:
    await gateway.election.start()
    assert (gateway.election.leads, gateway.election.leader, gateway.risen) == (False, OTHER, [])
    assert gateway.election.known_jobs() == 12
    gateway.lease.is_free = True
    await gateway.looks()
    assert (gateway.election.leads, gateway.election.leader, gateway.risen) == (True, None, [8])
    await gateway.election.stop()


async def test_nobody_leads_while_the_last_leader_is_silent(gateway: Gateway) -> None:
    gateway.lease.leader = OTHER._replace(is_alive=False)
    await gateway.election.start()
    assert (gateway.election.leads, gateway.election.leader) == (False, None)
    await gateway.election.stop()


async def test_whoever_lost_the_lease_falls_for_ever(gateway: Gateway) -> None:
    gateway.lease.is_free = True
    await gateway.election.start()
    gateway.lease.is_ours = False
    await gateway.looks(1)
    await asyncio.sleep(0)
    assert ["another gateway leads" in str(error) for error in gateway.fallen] == [True]
    renewals = len(gateway.lease.renewals)
    await asyncio.sleep(0.01)
    assert len(gateway.lease.renewals) == renewals
    await gateway.election.stop()


async def test_a_database_that_is_away_makes_nobody_fall(gateway: Gateway) -> None:
    gateway.lease.is_free = True
    await gateway.election.start()
    gateway.lease.is_away = True
    await gateway.looks()
    assert (gateway.election.leads, gateway.fallen) == (True, [])
    gateway.lease.is_away = False
    renewals = len(gateway.lease.renewals)
    await gateway.looks()
    assert len(gateway.lease.renewals) > renewals
    await gateway.election.stop()


async def test_who_cannot_begin_to_lead_says_so_at_the_start_and_falls_later(gateway: Gateway) -> None:
    gateway.fault = BackendError("the profiles cannot be read")
    gateway.lease.is_free = True
    with pytest.raises(BackendError, match="profiles"):
        await gateway.election.start()
    await gateway.election.stop()

    later = Gateway(FakeLease())
    later.fault = RuntimeError("a bug")
    await later.election.start()
    later.lease.is_free = True
    await later.looks()
    assert (later.fallen, later.election.leads) == ([later.fault], False)
    await later.election.stop()
