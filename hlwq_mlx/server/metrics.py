"""Count what a server does, and write the numbers in Prometheus' text format."""

from collections import Counter
from collections.abc import Iterator, Mapping

from .events import Usage

PREFIX = "hlwq"
BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters that the HTTP side adds to; the engine's numbers come as they are."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._waits: list[int] = [0] * len(BUCKETS_S)
        self._wait_count = 0
        self._wait_s = 0.0

    def answered(self, path: str, status: int) -> None:
        """Count a request by its path and the status of its answer."""
        self._requests[path, status] += 1

    def first_token(self, seconds: float) -> None:
        """Count how long a request waited for its first token."""
        self._wait_count += 1
        self._wait_s += seconds
        for at, bound in enumerate(BUCKETS_S):
            self._waits[at] += seconds <= bound

    def ended(self, usage: Usage) -> None:
        """Count the tokens of an answer that is over."""
        self._tokens["prompt"] += usage.prompt
        self._tokens["cached"] += usage.cached
        self._tokens["completion"] += usage.completion
        self._tokens["reasoning"] += usage.reasoning

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all numbers; `gauges` are the engine's, by name."""
        return "".join(f"{line}\n" for line in self._lines(gauges))

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        yield f"# TYPE {PREFIX}_requests_total counter"
        for (path, status), count in sorted(self._requests.items()):
            yield f'{PREFIX}_requests_total{{path="{path}",status="{status}"}} {count}'
        yield f"# TYPE {PREFIX}_tokens_total counter"
        for kind in ("prompt", "cached", "completion", "reasoning"):
            yield f'{PREFIX}_tokens_total{{kind="{kind}"}} {self._tokens[kind]}'
        name = f"{PREFIX}_time_to_first_token_seconds"
        yield f"# TYPE {name} histogram"
        for bound, count in zip(BUCKETS_S, self._waits, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self._wait_count}'
        yield f"{name}_sum {self._wait_s:.6f}"
        yield f"{name}_count {self._wait_count}"
        for gauge, value in sorted(gauges.items()):
            yield f"# TYPE {PREFIX}_{gauge} gauge"
            yield f"{PREFIX}_{gauge} {value:g}"
