"""Counters of a gateway in Prometheus' text format (0.0.4). No unit, no prompt in a label.

Times are in seconds. Buckets reach from a small model on a CPU to a large one with many steps, up
to the default request time-out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from intonaco.serving.gateway.state import GatewayState
from intonaco.types import Attempt, Outcome, Record

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        place = next((i for i, top in enumerate(BUCKETS) if value <= top), len(BUCKETS))
        self.counts[place] += 1
        self.total += value


@dataclass(slots=True)
class Metrics:
    images: Counter[Labels] = field(default_factory=Counter)
    attempts: Counter[Labels] = field(default_factory=Counter)
    shed: Counter[Labels] = field(default_factory=Counter)
    seconds: dict[Labels, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    queue: dict[Labels, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    service: dict[Labels, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    answers: Counter[Labels] = field(default_factory=Counter)
    route_seconds: dict[Labels, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    rejected: Counter[Labels] = field(default_factory=Counter)
    feedback: Counter[Labels] = field(default_factory=Counter)
    users_in_flight: Callable[[], int] = int  # images being made for users
    receiving_bytes: Callable[[], int] = int  # of bodies that are arriving or being prepared
    controller_ticked: Callable[[], float | None] = lambda: None  # since the Unix epoch
    storage_errors: int = 0
    pruned: int = 0

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """One HTTP request. ``route``: a template, never the path that was asked for."""
        at = ("route", route)
        self.answers[(at, ("method", method), ("status", str(status)))] += 1
        self.route_seconds[(at,)].observe(seconds)

    def reject(self, reason: str) -> None:
        self.rejected[(("reason", reason),)] += 1

    def vote(self, *, kind: str, vote: str, arm: str, release: str) -> None:
        labels = (("kind", kind), ("vote", vote), ("arm", arm), ("release", release[:10]))
        self.feedback[labels] += 1

    def count(self, record: Record) -> None:
        kind = "probe" if record.probe else "shadow" if record.shadow_of else "user"
        arm = ("assigned_arm", record.assigned_arm)
        self.images[(("kind", kind), arm, ("status", str(record.status)))] += 1
        if kind == "user" and record.status == 200:
            self.seconds[(arm,)].observe(record.seconds)
        for attempt in record.attempts:
            self.attempts[_attempt(attempt)] += 1
            if attempt.outcome is Outcome.OK:
                who = (("arm", attempt.arm), ("release", attempt.release[:10]))
                self.queue[who].observe(attempt.queue_seconds)
                self.service[who].observe(attempt.service_seconds)

    def text(self, state: GatewayState) -> str:
        return "\n".join(self._lines(state)) + "\n"

    def _lines(self, state: GatewayState) -> Iterator[str]:
        yield from _family("images_total", "counter", "Images asked for.", self.images)
        yield from _family("attempts_total", "counter", "Tries at workers.", self.attempts)
        yield from _family("shadow_shed_total", "counter", "Copies not made: load.", self.shed)
        yield from _scalar("requests_total", "counter", "User requests answered.", state.requests)
        yield from _scalar("requests_failed_total", "counter", "With a server error.", state.failed)
        yield from _scalar(
            "storage_errors_total", "counter", "Records or images not kept.", self.storage_errors
        )
        yield from _scalar("pruned_total", "counter", "Old files and folders gone.", self.pruned)
        yield from _family("http_requests_total", "counter", "HTTP requests.", self.answers)
        yield from _family("rejected_total", "counter", "Requests refused.", self.rejected)
        yield from _family("feedback_total", "counter", "Feedback taken.", self.feedback)
        yield from _scalar(
            "users_in_flight", "gauge", "Images being made for users.", self.users_in_flight()
        )
        held = self.receiving_bytes()
        yield from _scalar("receiving_bytes", "gauge", "Held of bodies that arrive.", held)
        ticked = self.controller_ticked()
        if ticked is not None:
            name = "intonaco_controller_last_tick_timestamp_seconds"
            yield f"# HELP {name} End of the controller's last tick, since the Unix epoch."
            yield f"# TYPE {name} gauge"
            yield f"{name} {_exact(ticked)}"
        observed = state.observed()
        yield from _scalar("routing_epoch", "gauge", "Epoch followed.", observed.epoch)
        weights: dict[Labels, float] = {(("arm", a),): w for a, w in observed.weights.items()}
        yield from _family("arm_weight", "gauge", "Weight in force.", weights)
        flights: dict[Labels, float] = {
            (("release", r[:10]),): n for r, n in observed.in_flight.items()
        }
        yield from _family("in_flight", "gauge", "Tries in flight.", flights)
        trips: dict[Labels, float] = {(("release", t.release[:10]),): 1 for t in observed.trips}
        yield from _family("breaker_tripped", "gauge", "1: no traffic until untripped.", trips)
        yield from _histograms("request_seconds", "Images answered, end to end.", self.seconds)
        yield from _histograms("attempt_queue_seconds", "Wait at the worker.", self.queue)
        yield from _histograms("attempt_service_seconds", "Work on the batch.", self.service)
        yield from _histograms("http_request_seconds", "HTTP requests.", self.route_seconds)


def _attempt(attempt: Attempt) -> Labels:
    return (
        ("arm", attempt.arm),
        ("release", attempt.release[:10]),
        ("outcome", attempt.outcome.value),
    )


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP intonaco_gateway_{name} {text}"
    yield f"# TYPE intonaco_gateway_{name} {kind}"


def _family(name: str, kind: str, text: str, values: Mapping[Labels, float]) -> Iterator[str]:
    yield from _head(name, kind, text)
    for labels, value in values.items():
        yield f"intonaco_gateway_{name}{_labels(labels)} {_exact(value)}"


def _scalar(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"intonaco_gateway_{name} {_exact(value)}"


def _histograms(name: str, text: str, values: dict[Labels, Histogram]) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    for labels, histogram in values.items():
        below = 0
        tops = [f"{b:g}" for b in BUCKETS] + ["+Inf"]
        for top, count in zip(tops, histogram.counts, strict=True):
            below += count
            yield f"intonaco_gateway_{name}_bucket{_labels((*labels, ('le', top)))} {below}"
        yield f"intonaco_gateway_{name}_sum{_labels(labels)} {_exact(histogram.total)}"
        yield f"intonaco_gateway_{name}_count{_labels(labels)} {below}"


def _exact(value: float) -> str:
    """All digits: of a counter cut to six, a rate beyond a million shows steps that nobody made."""
    return repr(value).removesuffix(".0")


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{k}="{_escape(v)}"' for k, v in labels)
    return f"{{{inside}}}" if inside else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
