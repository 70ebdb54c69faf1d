"""What a server tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "carbrand_requests_total", "Requests answered.", ("path", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "carbrand_request_seconds", "From head to answer.", ("path",), buckets=_SECONDS, registry=self._registry
        )
        self.photos = Counter("carbrand_photos_total", "Photos, by answer.", ("answer",), registry=self._registry)
        self.batch = Histogram("carbrand_batch_photos", "Photos per pass.", buckets=_BATCHES, registry=self._registry)
        self.network_seconds = Histogram(
            "carbrand_network_seconds", "Of a pass through the network.", buckets=_SECONDS, registry=self._registry
        )
        self.waiting = Gauge("carbrand_photos_waiting", "Photos in the house.", registry=self._registry)
        self.version = Gauge("carbrand_model_version", "The version that answers.", registry=self._registry)
        self.lost_rows = Gauge(
            "carbrand_prediction_log_lost_rows", "Rows and photos that could not be logged.", registry=self._registry
        )

    def watch_batch(self, photos: int, seconds: float) -> None:
        """Notes a pass through the network."""
        self.batch.observe(photos)
        self.network_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
