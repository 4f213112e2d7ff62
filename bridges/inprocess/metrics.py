"""The figures of a broker as Prometheus metrics, read when they are scraped. The names are a public contract.

Labels are bounded: by the names of subscriptions, those made without one together under ``""``. Topics are no labels; see `Broker.figures`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from bridges.inprocess.broker import Broker
    from bridges.inprocess.stats import SubscriptionFigures

_COUNTERS = {
    "published": "Messages addressed to the subscription",
    "delivered": "Messages handed to a reader, each once",
    "dropped": "Messages that were never handed to a reader",
    "redelivered": "Messages handed to a reader again",
    "done": "Messages acknowledged",
    "dead": "Messages given up",
}


class BrokerMetrics:
    """A collector of one broker; it costs nothing but when it is scraped."""

    def __init__(self, broker: Broker, registry: CollectorRegistry = REGISTRY) -> None:
        self._broker = broker
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return the figures as they are now."""
        figures = self._broker.figures()
        by_label: dict[str, list[SubscriptionFigures]] = {}
        for name, one in figures.subscriptions.items():
            by_label.setdefault(name if self._broker.named(name) else "", []).append(one)
        for field, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"outbox_inprocess_{field}", text, labels=["subscription"])
            for label, those in by_label.items():
                counter.add_metric([label], sum(getattr(one, field) for one in those))
            yield counter
        lag = GaugeMetricFamily("outbox_inprocess_lag_messages", "Messages not yet acknowledged", labels=["subscription"])
        queue = SummaryMetricFamily("outbox_inprocess_queue_seconds", "From publish to a reader", labels=["subscription"])
        handler = SummaryMetricFamily("outbox_inprocess_handler_seconds", "From a reader to its end", labels=["subscription"])
        tenants = GaugeMetricFamily("outbox_inprocess_tenants_waiting", "Tenants that have something waiting", labels=["subscription"])
        for label, those in by_label.items():
            totals: Counter[str] = Counter()
            for one in those:
                totals["lag"] += one.lag
                totals["delivered"] += one.delivered
                totals["ended"] += one.delivered + one.redelivered - one.unacknowledged
                totals["tenants"] += len(one.tenants)
            lag.add_metric([label], totals["lag"])
            tenants.add_metric([label], totals["tenants"])
            queue.add_metric([label], totals["delivered"], sum(one.queue_seconds for one in those))
            handler.add_metric([label], totals["ended"], sum(one.handler_seconds for one in those))
        yield from (lag, queue, handler, tenants)
        yield GaugeMetricFamily("outbox_inprocess_scheduled_messages", "Messages that wait for their time", figures.scheduled)
        yield GaugeMetricFamily("outbox_inprocess_dead_letters", "Dead letters kept", figures.dead_letters)
