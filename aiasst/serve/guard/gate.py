"""Who asks, and whether one may ask again: keys and rates, the same for every protocol. Knows no protocol.

REST and WebSocket pass through it in `guard.Guard`; gRPC calls `Gate.caller` with the metadata of each call. They share one gate,
so that a key's rate is one rate however it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aiasst.serve.guard.keys import Keys, presented
from aiasst.serve.guard.rate import Rate, Standing, who
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller
from aiasst.serve.settings import ServeSettings


class Gate:
    """Keys and rates of one service."""

    def __init__(self, settings: ServeSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        per_minute = settings.limits.requests_per_minute
        self._keys = Keys(settings.keys)
        self._rate = None if per_minute is None else Rate(per_minute, clock=clock)

    @property
    def keyed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._keys)

    def caller(self, authorization: str | None, address: str, *, x_api_key: str | None = None) -> Caller:
        """Who asks, of one request; the request is counted.

        Args:
            authorization: `Bearer KEY`, as in the header.
            address: of the peer, without its port.
            x_api_key: the key itself, as in the other header that clients use.

        Raises:
            Refusal: "unauthorized" or "rate_limited".
        """
        caller = self.known(presented(authorization, x_api_key))
        self.admit(caller, address)
        return caller

    def known(self, key: str | None) -> Caller:
        """Who has this key, without counting a request.

        Raises:
            Refusal: "unauthorized".
        """
        return Caller(self._keys.name(key))

    def admit(self, caller: Caller, address: str) -> Standing | None:
        """Count one request: the first of a connection, or a further one on a WebSocket. None where there is no limit.

        Raises:
            Refusal: "rate_limited", with the seconds to wait.
        """
        if self._rate is None:
            return None
        standing = self._rate.ask(f"key {caller.name}" if caller.name else f"address {who(address)}")
        if not standing.allowed:
            message = f"more than {standing.limit} requests a minute"
            raise Refusal("rate_limited", message, "wait, then try again", retry_after=standing.wait)
        return standing
