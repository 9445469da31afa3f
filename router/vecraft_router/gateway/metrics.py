"""``/metrics``: Prometheus text, from every shard's own figures and the gateway's counters.

Names (API.md §7): ``vecraft_{search,insert,get,delete}_total`` and ``vecraft_{…}_latency`` (a histogram in seconds,
with only requests that succeeded), ``vecraft_collection_size{collection}``; every figure a shard reports becomes
``vecraft_<figure>{shard}``, a counter if its name ends in ``_total`` and a gauge otherwise;
``vecraft_recall_estimate{collection}``, with ``_low`` and ``_high``, is the recall at 10 that the shards measured;
``vecraft_shard_up{shard}`` is 0 for a shard that did not answer this scrape, whose other figures are then left out
rather than repeated from memory.

Shard figures are asked for at the moment of the scrape; nothing is cached. Each gateway counts only what went through
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vecraft_data_model.messages import StatusReply

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KINDS = ("search", "insert", "get", "delete")
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_NAME = re.compile(r"[^a-zA-Z0-9_]")


class GatewayMetrics:
    """What one gateway counts. Each has its own registry, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._totals = {
            kind: Counter(f"vecraft_{kind}", f"{kind} requests that succeeded", registry=self.registry)
            for kind in KINDS
        }
        self._latencies = {
            kind: Histogram(
                f"vecraft_{kind}_latency",
                f"seconds from the first byte of a {kind} request to its answer",
                registry=self.registry,
                buckets=_BUCKETS_S,
            )
            for kind in KINDS
        }
        self._requests = Counter(
            "vecraft_http_requests", "requests answered", ["method", "status"], registry=self.registry
        )
        self.in_flight = Gauge("vecraft_http_requests_in_flight", "requests being served", registry=self.registry)
        self.body_bytes = Gauge("vecraft_http_body_bytes_held", "bytes of request bodies held", registry=self.registry)
        ProcessCollector(registry=self.registry)  # memory, CPU, open files of this process
        self._known: dict[tuple[str, int], Counter] = {}

    def answered(self, method: str, status: int, kind: str | None, seconds: float) -> None:
        """Count one answered request; ``kind`` is one of ``KINDS`` or None."""
        counter = self._known.get((method, status))
        if counter is None:
            # Methods are chosen by clients: only those that exist may become label values.
            shown = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
            counter = self._known[shown, status] = self._requests.labels(shown, str(status))
        counter.inc()
        if kind is not None and status < 400:
            self._totals[kind].inc()
            self._latencies[kind].observe(seconds)

    def render(self, replies: Mapping[int, object]) -> bytes:
        """Return the text; ``replies`` holds each shard's ``StatusReply``, or whatever else came instead of one."""
        return generate_latest(_Scrape([self.registry, _Shards(replies)]))


class _Scrape(CollectorRegistry):
    """Several sources as one, for one scrape."""

    def __init__(self, sources: Iterable[CollectorRegistry | Collector]) -> None:
        super().__init__()
        self._sources = list(sources)

    def collect(self) -> Iterable[Metric]:
        for source in self._sources:
            yield from source.collect()


class _Shards(Collector):
    def __init__(self, replies: Mapping[int, object]) -> None:
        self._replies = replies

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("vecraft_shard_up", "1 if the shard answered this scrape", labels=["shard"])
        epoch = GaugeMetricFamily("vecraft_shard_epoch", "starts of the shard's directory", labels=["shard"])
        lsn = GaugeMetricFamily("vecraft_wal_lsn", "last log sequence number", labels=["shard"])
        size = GaugeMetricFamily("vecraft_collection_size", "records alive", labels=["collection"])
        figures: dict[str, Metric] = {}
        sizes: dict[str, int] = {}
        recalls: dict[str, list[tuple[int, tuple[float, float, float]]]] = {}
        for shard, reply in sorted(self._replies.items()):
            label = [str(shard)]
            if not isinstance(reply, StatusReply):
                up.add_metric(label, 0)
                continue
            up.add_metric(label, 1)
            epoch.add_metric(label, reply.epoch)
            lsn.add_metric(label, reply.lsn)
            for name, value in sorted(reply.figures.items()):
                _family(figures, name).add_metric(label, value)
            for collection, count in reply.collections.items():
                sizes[collection] = sizes.get(collection, 0) + count
            for collection, estimate in reply.recalls.items():
                recalls.setdefault(collection, []).append((reply.collections[collection], estimate))
        for collection, count in sorted(sizes.items()):
            size.add_metric([collection], count)
        return [up, epoch, lsn, size, *_recall_families(recalls), *figures.values()]


def _recall_families(recalls: Mapping[str, list[tuple[int, tuple[float, float, float]]]]) -> list[Metric]:
    """Each collection's recall over its shards, weighted by their rows, and likewise the bounds: rather too wide."""
    families = [
        GaugeMetricFamily("vecraft_recall_estimate", "recall at 10, measured by the shards", labels=["collection"]),
        GaugeMetricFamily("vecraft_recall_estimate_low", "lower end of its 95% interval", labels=["collection"]),
        GaugeMetricFamily("vecraft_recall_estimate_high", "upper end of its 95% interval", labels=["collection"]),
    ]
    for collection, parts in sorted(recalls.items()):
        rows = sum(count for count, _ in parts) or 1
        for i, family in enumerate(families):
            family.add_metric([collection], sum(count * estimate[i] for count, estimate in parts) / rows)
    return list(families)


def _family(families: dict[str, Metric], name: str) -> GaugeMetricFamily | CounterMetricFamily:
    full = "vecraft_" + _NAME.sub("_", name)
    family = families.get(full)
    if family is None:
        what = name.replace("_", " ")
        if name.endswith("_total"):
            family = CounterMetricFamily(full, f"{what} (by shard)", labels=["shard"])
        else:
            family = GaugeMetricFamily(full, f"{what} (by shard)", labels=["shard"])
        families[full] = family
    return family  # type: ignore[return-value]
