"""What `/metrics` tells: counts that cost an addition each, made into Prometheus' text when somebody asks.

The counts are plain numbers of ours, since the counters of prometheus-client lock and look up at every step.
`Metrics` is a collector in prometheus-client's sense, so a program with a registry of its own may add it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import DurableStreamError
from .responses import METHODS
from .stores.abilities import Histogram, MeasuredStore, StoreFigures
from .stores.base import Store

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_METHODS = frozenset(METHODS.split(", "))


class Metrics:
    """Counts what an application does; a collector for prometheus-client.

    Args:
        store: Asked for its figures, if it has some (`MeasuredStore`).
        readers: Tells how many live readers there are.
        in_progress: Tells how many requests are in progress.

    Raises:
        ModuleNotFoundError: if prometheus-client is missing (extra `server`).
    """

    def __init__(self, store: Store, *, readers: Callable[[], int], in_progress: Callable[[], int]) -> None:
        try:
            import prometheus_client
        except ModuleNotFoundError as error:
            if error.name != "prometheus_client":
                raise
            raise ModuleNotFoundError(
                "metrics need prometheus-client: pip install 'durable-streams-anyio[server]'", name="prometheus_client"
            ) from None
        self._store = store
        self._readers = readers
        self._in_progress = in_progress
        self._requests: dict[tuple[str, int], int] = {}
        self._appends = 0
        self._messages = 0
        self._bytes = 0
        self._registry: CollectorRegistry = prometheus_client.CollectorRegistry()
        self._registry.register(self)
        prometheus_client.ProcessCollector(registry=self._registry)
        prometheus_client.PlatformCollector(registry=self._registry)

    def count_request(self, method: str, status: int) -> None:
        """A request is at its end; status 0: it was not answered."""
        key = (method if method in _METHODS else "other", status)
        self._requests[key] = self._requests.get(key, 0) + 1

    def count_append(self, size: int, messages: int) -> None:
        """Something was appended."""
        self._appends += 1
        self._bytes += size
        self._messages += messages

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The text for a scraper with this `Accept` header, and its content type."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Nothing: so that registering does not ask the store, which may not be open yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, now."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        requests = CounterMetricFamily(
            "durable_streams_requests", "Requests answered; code 0: not answered.", labels=["method", "code"]
        )
        for (method, status), count in sorted(self._requests.items()):
            requests.add_metric([method, str(status)], count)
        yield requests
        for name, text, value in (
            ("appends", "Appends with data that were stored.", self._appends),
            ("appended_bytes", "Bytes appended to streams.", self._bytes),
            ("appended_messages", "Messages appended to streams; outside JSON mode an append is one.", self._messages),
        ):
            yield CounterMetricFamily(f"durable_streams_{name}", text, value=value)
        yield GaugeMetricFamily(
            "durable_streams_requests_in_progress", "Requests being answered.", value=self._in_progress()
        )
        yield GaugeMetricFamily(
            "durable_streams_open_readers", "Live readers: long-polls and server-sent events.", value=self._readers()
        )
        figures = self._figures()
        if figures is not None:
            yield from _store_metrics(figures)

    def _figures(self) -> StoreFigures | None:
        if not isinstance(self._store, MeasuredStore):
            return None
        try:
            return self._store.figures()
        except DurableStreamError:
            return None  # not open, or no longer


def _store_metrics(figures: StoreFigures) -> Iterator[Any]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    yield GaugeMetricFamily("durable_streams_streams", "Streams in the store.", value=figures.streams)
    yield GaugeMetricFamily(
        "durable_streams_store_bytes", "Size of the store: on disk, or of data in memory.", value=figures.size
    )
    if figures.commit_seconds is not None:
        yield _histogram("commit_seconds", "Duration of transactions, the disk included.", figures.commit_seconds)
    if figures.commit_requests is not None:
        yield _histogram("commit_requests", "Requests in each transaction.", figures.commit_requests)


def _histogram(name: str, text: str, histogram: Histogram) -> Any:
    from prometheus_client.metrics_core import HistogramMetricFamily

    buckets = []
    so_far = 0
    for bound, count in zip(
        (*(str(float(bound)) for bound in histogram.bounds), "+Inf"), histogram.counts, strict=True
    ):
        so_far += count
        buckets.append((bound, so_far))
    return HistogramMetricFamily(f"durable_streams_{name}", text, buckets=buckets, sum_value=histogram.total)
