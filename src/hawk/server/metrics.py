"""Figures of the server in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hawk.decoding.stats import Stats
from hawk.server.observer import Observer

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
FORWARDS = (1, 10, 25, 50, 100, 200, 400, 800, 1600, 3200)
LENGTHS = (1, 1.5, 2, 3, 4, 5, 6, 8, 12, 16)


class ServerMetrics(Observer):
    """The figures of one server, in a registry of their own."""

    def __init__(self, places: int) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("hawk_requests", "HTTP requests", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "hawk_request_seconds", "Time of an HTTP request", ("route",), buckets=SECONDS, registry=registry
        )
        self.jobs = Counter("hawk_jobs", "Requests for images, by how they ended", ("outcome",), registry=registry)
        self.images = Counter("hawk_images", "Finished images", ("method",), registry=registry)
        self.tokens = Counter("hawk_tokens", "Committed tokens", registry=registry)
        self.steps = Counter("hawk_steps", "Steps of the engine; a whole group counts as one", registry=registry)
        self.accepted = Counter("hawk_accepted_drafts", "Accepted drafts", ("source",), registry=registry)
        self.failures = Counter("hawk_failed_steps", "Steps that raised an error", registry=registry)
        self.waiting = Gauge("hawk_waiting_images", "Images that wait", registry=registry)
        self.live = Gauge("hawk_live_images", "Images that are being drawn", registry=registry)
        self.places = Gauge("hawk_places", "The most images that are drawn at once", registry=registry)
        self.places.set(places)
        self.replicas = Gauge("hawk_replicas", "Replicas that draw; 1 without Ray", registry=registry)
        self.replicas.set(1)
        self.most = places
        self.fill = Histogram(
            "hawk_batch_fill", "Share of the places that a step used", buckets=(0.25, 0.5, 0.75, 1.0), registry=registry
        )
        self.step_seconds = Histogram(
            "hawk_step_seconds", "Time of a step of the engine", buckets=STEP_SECONDS, registry=registry
        )
        self.wait_seconds = Histogram(
            "hawk_wait_seconds", "Time that an image waited", buckets=SECONDS, registry=registry
        )
        self.image_seconds = Histogram(
            "hawk_image_seconds", "An image's share of its steps' time", buckets=SECONDS, registry=registry
        )
        self.nfe = Histogram("hawk_nfe", "Target forwards of an image", buckets=FORWARDS, registry=registry)
        self.length = Histogram(
            "hawk_accept_length", "Tokens of an image per target forward", buckets=LENGTHS, registry=registry
        )

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        return generate_latest(self.registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def counted(self, waiting: int, live: int) -> None:
        """So many images wait, and so many are being drawn."""
        self.waiting.set(waiting)
        self.live.set(live)

    def stepped(self, live: int, tokens: int, seconds: float) -> None:
        """A step, or a whole group, of `live` images committed so many tokens."""
        self.steps.inc()
        self.tokens.inc(max(0, tokens))
        self.fill.observe(live / self.most)
        self.step_seconds.observe(seconds)

    def drawn(self, method: str, stats: Stats, images: int, waited: float, seconds: float) -> None:
        """An image is finished."""
        self.images.labels(method).inc()
        self.wait_seconds.observe(max(0.0, waited))
        self.image_seconds.observe(seconds)
        self.nfe.observe(stats.nfe)
        self.length.observe(stats.accept_length)
        for source, count in stats.accepted_by_source.items():
            self.accepted.labels(source).inc(count / images)

    def replicated(self, replicas: int) -> None:
        """So many replicas draw, each with the same number of places."""
        self.replicas.set(replicas)
        self.places.set(self.most * replicas)

    def ended(self, kind: str) -> None:
        """A job ended."""
        self.jobs.labels(kind).inc()

    def recovered(self, images: int) -> None:
        """A step failed."""
        self.failures.inc()
