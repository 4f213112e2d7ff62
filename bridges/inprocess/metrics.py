"""The figures of brokers as Prometheus metrics, read when they are scraped. The names are a public contract.

Labels are bounded: by the names of brokers, and of subscriptions, those made without one together under ``""``, with those of them
that have ended. Topics are no labels; see `Broker.figures`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


_LABELS = ("broker", "subscription")


class BrokerMetrics:
    """A collector; it costs nothing but when it is scraped.

    Args:
        brokers: whose figures, each under the name that is its label. One collector has them all: a registry takes a metric once.
        registry: where they are scraped.
    """

    def __init__(self, brokers: Mapping[str, Broker], registry: CollectorRegistry = REGISTRY) -> None:
        self._brokers = dict(brokers)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return the figures as they are now."""
        figures = {name: broker.figures() for name, broker in self._brokers.items()}
        by_labels: dict[tuple[str, str], list[SubscriptionFigures]] = {}
        for name, broker in self._brokers.items():
            for subscription, one in figures[name].subscriptions.items():
                by_labels.setdefault((name, subscription if broker.named(subscription) else ""), []).append(one)
            if figures[name].ended.published:  # a counter that went down would have Prometheus count the rest again
                by_labels.setdefault((name, ""), []).append(figures[name].ended)
        for field, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"outbox_inprocess_{field}", text, labels=_LABELS)
            for labels, those in by_labels.items():
                counter.add_metric(labels, sum(getattr(one, field) for one in those))
            yield counter
        lag = GaugeMetricFamily("outbox_inprocess_lag_messages", "Messages not yet acknowledged", labels=_LABELS)
        queue = SummaryMetricFamily("outbox_inprocess_queue_seconds", "From publish to a reader", labels=_LABELS)
        handler = SummaryMetricFamily("outbox_inprocess_handler_seconds", "From a reader to its end", labels=_LABELS)
        tenants = GaugeMetricFamily("outbox_inprocess_tenants_waiting", "Tenants that have something waiting", labels=_LABELS)
        for labels, those in by_labels.items():
            totals: Counter[str] = Counter()
            for one in those:
                totals["lag"] += one.lag
                totals["delivered"] += one.delivered
                totals["ended"] += one.delivered + one.redelivered - one.unacknowledged
                totals["tenants"] += len(one.tenants)
            lag.add_metric(labels, totals["lag"])
            tenants.add_metric(labels, totals["tenants"])
            queue.add_metric(labels, totals["delivered"], sum(one.queue_seconds for one in those))
            handler.add_metric(labels, totals["ended"], sum(one.handler_seconds for one in those))
        yield from (lag, queue, handler, tenants)
        scheduled = GaugeMetricFamily("outbox_inprocess_scheduled_messages", "Messages that wait for their time", labels=_LABELS[:1])
        letters = GaugeMetricFamily("outbox_inprocess_dead_letters", "Dead letters kept", labels=_LABELS[:1])
        text = "Dead letters let go because there was no room for more"
        overflowed = CounterMetricFamily("outbox_inprocess_dead_letters_overflowed", text, labels=_LABELS[:1])
        for name, its in figures.items():
            scheduled.add_metric([name], its.scheduled)
            letters.add_metric([name], its.dead_letters)
            overflowed.add_metric([name], its.dead_letters_overflowed)
        yield from (scheduled, letters, overflowed)
