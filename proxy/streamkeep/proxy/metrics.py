"""Metrics: the tallies of one process in the words of Prometheus.

The parts count in plain numbers as they work; here these are gathered when somebody asks, so a scrape costs what it
shows and the hot path nothing. There is no state outside of a `Service`, and no label that a caller could make up.

The names are an interface: the README tells what each one is for, and a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from streamkeep.proxy.attempts import NOT_UPSTREAMS
from streamkeep.proxy.service import Service
from streamkeep.storage.tallies import CommitTally, Histogram

Labels = tuple[str, ...]
L = TypeVar("L", bound=Labels)
S = TypeVar("S", bound=str)

_NO_LABELS: Labels = ()


class Metrics:
    """One service's metrics as text."""

    def __init__(self, service: Service) -> None:
        self._gatherer = _Gatherer(service)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._gatherer)
        ProcessCollector(registry=self._registry)

    def render(self, *, is_database_up: bool, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that `accept` prefers, and that format's content type."""
        self._gatherer.is_database_up = is_database_up
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Gatherer(Collector):
    def __init__(self, service: Service) -> None:
        self.is_database_up = False
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield from self._vendors()
        yield from self._recording()
        yield from self._sessions()
        yield from self._commits()
        yield from self._reading()
        yield from self._database()
        yield from self._process()

    def _vendors(self) -> Iterator[Metric]:
        tally = self._service.generations.tally
        yield _histogram(
            "streamkeep_upstream_first_chunk_seconds",
            "From sending the request to the first bytes of upstream's answer",
            {(upstream,): histogram for upstream, histogram in tally.first_chunk_seconds.items()},
            ("upstream",),
        )
        refused = {(upstream, _status(status)): count for (upstream, status), count in tally.refused.items()}
        yield _counter(
            "streamkeep_upstream_refusals", "Requests that upstream refused", refused, ("upstream", "status")
        )
        yield _counter("streamkeep_upstream_retries", "Requests sent again before the first byte", tally.retries)

    def _recording(self) -> Iterator[Metric]:
        generations = self._service.generations
        tally = generations.tally
        yield _histogram(
            "streamkeep_creation_seconds",
            "What creating a generation takes: our claim, upstream's head, our commit of its acceptance",
            {
                ("claim",): tally.claim_seconds,
                ("upstream",): tally.upstream_seconds,
                ("acceptance",): tally.acceptance_seconds,
            },
            ("part",),
        )
        yield _gauge("streamkeep_generations_running", "Generations recorded now", generations.running)
        yield _counter(
            "streamkeep_generations_ended",
            "Generations by upstream and by how they ended",
            {(upstream, code.state.value, code.value): count for (upstream, code), count in tally.ended.items()},
            ("upstream", "event", "code"),
        )
        yield _counter("streamkeep_cancels", "Generations cancelled, by who asked", _by_one(tally.cancels), ("cause",))
        yield _counter(
            "streamkeep_resumes", "Requests answered without a new upstream call", _by_one(tally.resumes), ("kind",)
        )
        yield _counter("streamkeep_orphans_recovered", "Generations of dead processes ended here", tally.recovered)
        yield _counter("streamkeep_fenced", "Times that others took this process for dead", tally.fenced)

    def _sessions(self) -> Iterator[Metric]:
        runner = self._service.session_runner
        yield _gauge("streamkeep_sessions_held", "Durable sessions with work under way here", runner.running)
        yield _counter(
            "streamkeep_agent_turns", "Turns of agents, by how they ended", _by_one(runner.tally.turns), ("outcome",)
        )
        yield _counter("streamkeep_agent_rows", "Rows of agents' answers written", runner.tally.rows)

    def _commits(self) -> Iterator[Metric]:
        writer, appender = self._service.writer, self._service.appender
        lanes: Mapping[Labels, CommitTally] = {("generations",): writer.tally, ("streams",): appender.tally}
        yield _histogram(
            "streamkeep_commit_lag_seconds",
            "From taking a batch's oldest bytes to their commit",
            {lane: tally.lag_seconds for lane, tally in lanes.items()},
            ("lane",),
        )
        yield _histogram(
            "streamkeep_commit_batch_bytes",
            "Bytes of a group commit",
            {lane: tally.batch_bytes for lane, tally in lanes.items()},
            ("lane",),
        )
        yield _histogram(
            "streamkeep_commit_batch_items",
            "Streams, or appends, that share a group commit",
            {lane: tally.batch_items for lane, tally in lanes.items()},
            ("lane",),
        )
        yield _counter(
            "streamkeep_stored_bytes",
            "Bytes committed",
            {lane: tally.stored_bytes for lane, tally in lanes.items()},
            ("lane",),
        )
        yield _gauge(
            "streamkeep_pending_bytes",
            "Bytes taken and not yet committed",
            {("generations",): writer.pending_bytes, ("streams",): appender.pending_bytes},
            ("lane",),
        )
        yield _gauge(
            "streamkeep_pending_budget_bytes",
            "Bytes that may be pending before we stop reading",
            {("generations",): writer.process_budget_bytes, ("streams",): appender.budget_bytes},
            ("lane",),
        )

    def _reading(self) -> Iterator[Metric]:
        tally = self._service.readers.tally
        yield _gauge("streamkeep_readers", "Live readers now", _by_one(tally.following), ("mode",))
        yield _counter(
            "streamkeep_reads", "Reads begun, by mode and by where they begin", tally.begun, ("mode", "from")
        )
        yield _counter("streamkeep_delivered_bytes", "Bytes given to readers", tally.delivered_bytes)
        yield _histogram(
            "streamkeep_reader_lag_seconds",
            "From a commit to handing its bytes to a live reader's socket",
            {_NO_LABELS: tally.lag_seconds},
        )
        yield _counter("streamkeep_readers_cut_off", "Readers cut off because they took no bytes", tally.cut_off)

    def _database(self) -> Iterator[Metric]:
        status = self._service.store.status()
        tally = self._service.generations.tally
        yield _gauge("streamkeep_database_up", "1 while the database answers", self.is_database_up)
        yield _gauge("streamkeep_database_listening", "1 while notifications arrive", status.is_listening)
        yield _gauge("streamkeep_database_connections", "Connections in the pool", status.connections)
        yield _gauge("streamkeep_database_connections_busy", "Connections at work", status.busy_connections)
        yield _gauge("streamkeep_database_connections_max", "Connections that there may be", status.max_connections)
        yield _counter("streamkeep_streams_merged", "Pieces of streams merged into segments", tally.merged)
        yield _counter("streamkeep_rows_swept", "Generations and streams deleted after their time", tally.swept)

    def _process(self) -> Iterator[Metric]:
        tally, service = self._service.requests, self._service
        is_ready = service.is_ready and not service.generations.is_draining and self.is_database_up
        yield _gauge("streamkeep_ready", "1 while /ready answers 200", is_ready)
        yield _gauge("streamkeep_build_info", "The version that runs", {(version("streamkeep"),): 1}, ("version",))
        yield _counter(
            "streamkeep_requests",
            "Requests answered",
            {(method, str(status)): count for (method, status), count in tally.answers.items()},
            ("method", "status"),
        )
        yield _counter("streamkeep_errors", "Error answers of ours, by code", _by_one(tally.errors), ("code",))


def _by_one(counts: Mapping[S, int]) -> Mapping[Labels, int]:
    return {(label,): count for label, count in counts.items()}


def _status(status: int) -> str:
    """Upstream's status; `none` where it was never reached, or answered with nothing that is one."""
    return "none" if status == NOT_UPSTREAMS else str(status)


def _samples(values: Mapping[L, float] | float) -> Iterable[tuple[Labels, float]]:
    return values.items() if isinstance(values, Mapping) else [(_NO_LABELS, float(values))]


def _counter(name: str, text: str, values: Mapping[L, float] | float, labels: Labels = _NO_LABELS) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for given, value in _samples(values):
        family.add_metric(given, value)
    return family


def _gauge(name: str, text: str, values: Mapping[L, float] | float, labels: Labels = _NO_LABELS) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for given, value in _samples(values):
        family.add_metric(given, value)
    return family


def _histogram(name: str, text: str, values: Mapping[Labels, Histogram], labels: Labels = _NO_LABELS) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for given, histogram in values.items():
        family.add_metric(given, _cumulated(histogram), histogram.sum)
    return family


def _cumulated(histogram: Histogram) -> Sequence[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    return buckets
