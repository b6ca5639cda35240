"""`/metrics` after real generations: each family moves when what it tells of happens, and only then."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage import DEFAULT_TENANT, GenerationKey, MemoryStore, UpstreamHead
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.tallies import Histogram
from tests.database import PrivateServer
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAT = b'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"hi"}}]}\n\n'
END = b"data: [DONE]\n\n"


async def scrape(proxy: Proxy) -> dict[str, float]:
    """Every sample by its name and labels, as `name{label="value"}`, labels in order of name."""
    answer = await proxy.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    return {
        sample.name + _shown(sample.labels): sample.value for family in parse(answer.text) for sample in family.samples
    }


def _shown(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{pairs}}}" if pairs else ""


async def until(proxy: Proxy, sample: str, value: float) -> None:
    async with asyncio.timeout(60):
        while (await scrape(proxy)).get(sample) != value:
            await asyncio.sleep(0.05)


def ended(code: str, event: str = "error") -> str:
    return f'streamkeep_generations_ended_total{{code="{code}",event="{event}",upstream="127.0.0.1"}}'


async def test_a_whole_generation_is_counted_from_the_request_to_the_reader(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await gate.wait()
        await exchange.chunk(CHAT + END)
        await exchange.end()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        reading = asyncio.create_task(proxy.read("chat", "1", offset="-1", live="sse"))
        await until(proxy, 'streamkeep_readers{mode="sse"}', 1)
        assert (await scrape(proxy))["streamkeep_generations_running"] == 1
        gate.set()
        await reading
    await until(proxy, "streamkeep_generations_running", 0)
    await until(proxy, 'streamkeep_readers{mode="sse"}', 0)
    found = await scrape(proxy)
    assert found[ended("complete", "done")] == 1
    assert found['streamkeep_upstream_first_chunk_seconds_count{upstream="127.0.0.1"}'] == 1
    assert all(found[f'streamkeep_creation_seconds_count{{part="{part}"}}'] == 1 for part in PARTS)
    assert found['streamkeep_stored_bytes_total{lane="generations"}'] == len(CHAT + END)
    assert found["streamkeep_delivered_bytes_total"] == len(CHAT + END)
    assert found['streamkeep_pending_bytes{lane="generations"}'] == 0
    assert found['streamkeep_commit_batch_bytes_sum{lane="generations"}'] == len(CHAT + END)
    assert found['streamkeep_commit_lag_seconds_count{lane="generations"}'] >= 1
    assert found["streamkeep_reader_lag_seconds_count"] >= 1
    assert found['streamkeep_reads_total{from="start",mode="sse"}'] == 1
    assert found["streamkeep_ready"] == found["streamkeep_database_up"] == 1


PARTS = ("claim", "upstream", "acceptance")


async def test_truncations_refusals_and_errors_of_ours_are_told_apart(proxy: Proxy) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(400, b"no")

    async with upstream(whole(CHAT)) as cut, upstream(refuse) as refusing:
        await proxy.create("chat", "1", cut.url)
        assert (await proxy.ending("chat", "1"))["code"] == "truncated"
        assert (await proxy.create("chat", "2", refusing.url)).status_code == 400
    assert (await proxy.create("chat", "3", "http://elsewhere.example/")).status_code == 403
    assert (await proxy.create("chat", "4", "http://127.0.0.1:9/")).status_code == 502
    assert (await proxy.client.request("PROPFIND", "/health")).status_code == 405
    found = await scrape(proxy)
    assert found[ended("truncated")] == 1
    assert found['streamkeep_upstream_refusals_total{status="400",upstream="127.0.0.1"}'] == 1
    assert found['streamkeep_upstream_refusals_total{status="none",upstream="127.0.0.1"}'] == 1
    assert found["streamkeep_upstream_retries_total"] == 2
    assert found['streamkeep_errors_total{code="upstream_not_allowed"}'] == 1
    assert found['streamkeep_errors_total{code="upstream_unreachable"}'] == 1
    assert found['streamkeep_requests_total{method="POST",status="403"}'] == 1
    assert found['streamkeep_requests_total{method="other",status="405"}'] == 1
    assert "elsewhere" not in (await proxy.client.get("/metrics")).text


async def test_resumes_and_cancels_are_counted_by_kind(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(CHAT)
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.create("chat", "1", server.url)
        resumed = await proxy.create("chat", "2", server.url, X_Resume_Active_Generation="true")
        assert resumed.json()["requestId"] == "1"
        nothing = await proxy.create("empty", "1", server.url, X_Resume_Active_Generation="true")
        assert nothing.status_code == 204
        for _ in range(2):
            await proxy.client.post("/api/chat/1/cancel")
        await proxy.create("chat", "1", server.url)
        await proxy.read("chat", "1", offset=f"{0:016d}_{4:016d}")
    found = await scrape(proxy)
    kinds = {kind: found[f'streamkeep_resumes_total{{kind="{kind}"}}'] for kind in ("join", "active", "replay")}
    assert kinds == {"join": 1, "active": 1, "replay": 1}
    assert found['streamkeep_cancels_total{cause="request"}'] == 1
    assert found['streamkeep_cancels_total{cause="other_process"}'] == 0
    assert found[ended("cancelled", "cancelled")] == 1
    assert found['streamkeep_reads_total{from="offset",mode="catch-up"}'] == 1


async def test_a_drop_in_answer_is_counted_under_its_upstreams_name_and_read_directly() -> None:
    async with (
        upstream(whole(CHAT + END)) as server,
        serving(MemoryStore(), upstreams=Upstreams.parse(f"mine={server.url}")) as proxy,
    ):
        assert (await proxy.client.post("/u/mine/v1", content=b"{}")).content == CHAT + END
        await until(proxy, ended("complete", "done").replace("127.0.0.1", "mine"), 1)
        found = await scrape(proxy)
    assert found['streamkeep_reads_total{from="start",mode="direct"}'] == 1
    assert found["streamkeep_delivered_bytes_total"] == len(CHAT + END)


async def test_a_cancel_from_another_process_is_counted_where_it_stops_something(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.is_gone.wait()

    async with (
        upstream(play) as server,
        serving(PostgresStore(database_url)) as owner,
        serving(PostgresStore(database_url)) as other,
    ):
        await owner.create("chat", "1", server.url)
        await other.client.post("/api/chat/1/cancel")
        assert (await other.ending("chat", "1"))["code"] == "cancelled"
        found = await scrape(owner)
        assert found['streamkeep_cancels_total{cause="other_process"}'] == 1
        assert found["streamkeep_database_connections_max"] == 10
        assert 1 <= found["streamkeep_database_connections"] <= 10
        await until(owner, "streamkeep_database_listening", 1)
        # Two applications in one process count apart.
        assert ended("cancelled", "cancelled") not in await scrape(other)


async def test_what_a_dead_process_left_is_counted_where_it_is_ended() -> None:
    store = MemoryStore()
    dead = await store.register_owner()
    key = GenerationKey(DEFAULT_TENANT, "chat", "1")
    claim = await store.claim(dead, key, None)
    await store.start(claim.generation, UpstreamHead(200, "text/plain", None, ()), None)
    async with serving(store) as proxy:
        assert (await scrape(proxy))["streamkeep_orphans_recovered_total"] == 0
        await until(proxy, "streamkeep_orphans_recovered_total", 1)


async def test_a_frozen_database_shows_in_the_metrics_and_in_ready(private_server: PrivateServer) -> None:
    async def until_ready_says(status: int, database: str) -> None:
        async with asyncio.timeout(60):
            while (answer := await proxy.client.get("/ready")).status_code != status:
                await asyncio.sleep(0.05)
        assert answer.json()["parts"] == {"process": "ok", "database": database}

    async with serving(PostgresStore(private_server.url)) as proxy:
        await until(proxy, "streamkeep_database_listening", 1)
        await until_ready_says(200, "ok")
        private_server.freeze()
        await until_ready_says(503, "unavailable")
        found = await scrape(proxy)
        assert found["streamkeep_database_up"] == found["streamkeep_ready"] == 0
        private_server.thaw()
        await until_ready_says(200, "ok")
        await asyncio.to_thread(private_server.stop)
        await until_ready_says(503, "unavailable")
        await until(proxy, "streamkeep_database_listening", 0)
        await asyncio.to_thread(private_server.start)
        await until_ready_says(200, "ok")
        await until(proxy, "streamkeep_database_listening", 1)


class CountingStore(MemoryStore):
    """Counts the pings; they wait for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.pings = 0
        self.gate = asyncio.Event()

    async def ping(self) -> None:
        self.pings += 1
        await self.gate.wait()


async def test_probes_that_wait_share_one_ping() -> None:
    store = CountingStore()
    async with serving(store) as proxy:
        probes = [asyncio.create_task(proxy.client.get("/ready")) for _ in range(50)]
        assert [(await probe).status_code for probe in probes] == [503] * 50
        assert store.pings == 1
        store.gate.set()
        async with asyncio.timeout(60):
            while (await proxy.client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)


async def test_a_flood_of_probes_costs_two_pings_a_second_at_most() -> None:
    store = CountingStore()
    store.gate.set()
    async with serving(store) as proxy:
        began_at = time.monotonic()
        for _ in range(100):
            assert (await proxy.client.get("/ready")).status_code == 200
        assert store.pings <= 1 + (time.monotonic() - began_at) / 0.5


async def test_openmetrics_is_spoken_to_who_asks_for_it(proxy: Proxy) -> None:
    answer = await proxy.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert list(parse_openmetrics(answer.text))  # type: ignore[no-untyped-call]  # the parser has no types


async def test_the_readme_has_every_family_and_no_other(proxy: Proxy) -> None:
    families = {family.name for family in parse((await proxy.client.get("/metrics")).text)}
    shown = {name.removesuffix("_total") for name in re.findall(r"`(streamkeep_[a-z_]+)", README)}
    assert {family for family in families if family.startswith("streamkeep_")} == shown


@pytest.mark.parametrize(("value", "place"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (9.0, 2)])
def test_a_histogram_counts_up_to_and_with_its_bound(value: float, place: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert histogram.counts.index(1) == place
    assert histogram.sum == value
