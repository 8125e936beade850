"""How often one may ask: a token bucket for each key or address, in bounded memory. Knows neither keys nor requests.

Law: between any two moments t seconds apart, one who asks is let through at most burst + rate * t times; who never asks faster than
the rate is never refused as long as no more than MOST_BUCKETS ask at once. Beyond that number newcomers share one bucket, so that
the law holds whatever happens: nobody gets a new bucket by making others forget the old one.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_BUCKETS = 4096
BURST_MINUTES = 0.5
"""Of the rate that may be used at once."""
ROUNDING = 1e-6
"""Of a request that may be missing: sums of floating-point numbers fall a little short of whole ones."""


@dataclass
class Bucket:
    """How many requests are left, as of a moment in seconds."""

    left: float
    at: float


@dataclass(frozen=True)
class Standing:
    """What one may still ask for."""

    allowed: bool
    """Whether this request was let through."""
    limit: int
    """Requests a minute."""
    remaining: int
    """Requests that would be let through at once now."""
    wait: float
    """Seconds until the next would be let through; 0 where it would be now."""
    reset: float
    """Seconds until all would be let through that a pause can save up."""


class Rate:
    """Buckets by name."""

    def __init__(
        self, per_minute: float, *, clock: Callable[[], float] = time.monotonic, most_buckets: int = MOST_BUCKETS
    ) -> None:
        """`per_minute`: requests of one name, more than 0. `clock` gives seconds."""
        self.rate = per_minute / 60
        """Requests a second."""
        self.burst = max(1.0, BURST_MINUTES * per_minute)
        """Requests at once after a pause."""
        self._limit = max(1, round(per_minute))
        self._clock = clock
        self._most = most_buckets
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._shared = Bucket(self.burst, clock())

    def __len__(self) -> int:
        return len(self._buckets)

    def ask(self, name: str) -> Standing:
        """Let one request of `name` through, if it may be; a refused one costs nothing."""
        bucket = self._bucket(name, self._clock())
        allowed = bucket.left >= 1 - ROUNDING
        if allowed:
            bucket.left = max(0.0, bucket.left - 1)
        wait, reset = max(0.0, 1 - bucket.left) / self.rate, (self.burst - bucket.left) / self.rate
        return Standing(allowed, self._limit, int(bucket.left + ROUNDING), wait, reset)

    def _bucket(self, name: str, now: float) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._new(name, now)
        else:
            self._buckets.move_to_end(name)
        self._fill(bucket, now)
        return bucket

    def _new(self, name: str, now: float) -> Bucket:
        """A bucket for who has none; a full one tells the same as none, so the longest unused makes room if it is full."""
        self._fill(self._shared, now)
        if len(self._buckets) >= self._most:
            oldest, bucket = next(iter(self._buckets.items()))
            self._fill(bucket, now)
            if bucket.left < self.burst:
                return self._shared
            del self._buckets[oldest]
        # Who took from the shared one does not begin anew with a full one.
        self._buckets[name] = Bucket(self._shared.left, now)
        return self._buckets[name]

    def _fill(self, bucket: Bucket, now: float) -> None:
        bucket.left = min(self.burst, bucket.left + self.rate * max(0.0, now - bucket.at))
        bucket.at = max(bucket.at, now)


def who(address: str) -> str:
    """The name under which an address is counted: an IPv4 address itself, the network of 64 bits of an IPv6 address.

    One host has all addresses of such a network (RFC 4291 section 2.5.4), so they count as one.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
