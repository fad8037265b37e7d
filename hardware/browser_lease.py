"""Who drives, and how fresh what they say is. Times are passed in: seconds of CLOCK_MONOTONIC."""

from __future__ import annotations

from collections import deque

SILENCE_S = 2.0  # a lease ends after it
RATE_HZ, BURST = 200.0, 400.0  # of messages of one page
OFFSET_WINDOW_S = 10.0


class Lease:
    """One operator drives at a time, the first who comes. The rest look on.

    It ends with `leave`, with `give`, and when its holder says nothing for `SILENCE_S`; then whoever takes it first has
    it, also one who was waiting. Nobody is put off while they drive.
    """

    def __init__(self) -> None:
        self.holder: int | None = None
        self.asking: dict[int, str] = {}
        self._heard_s = 0.0

    def join(self, client: int, now_s: float) -> bool:
        """A page came; True when it drives from now on."""
        return self.take(client, now_s)

    def take(self, client: int, now_s: float) -> bool:
        """True when `client` drives from now on."""
        self.expire(now_s)
        if self.holder not in (None, client):
            return False
        self.holder, self._heard_s = client, now_s
        self.asking.pop(client, None)
        return True

    def ask(self, client: int, name: str) -> None:
        """`client` would like to drive; shown to who does."""
        if self.holder != client:
            self.asking[client] = name

    def give(self, client: int) -> bool:
        """The holder stops driving; False when `client` is another. Who asked first drives next only when they take it."""
        if self.holder != client:
            return False
        self.holder = None
        return True

    def leave(self, client: int) -> bool:
        """A page went; True when it was driving."""
        self.asking.pop(client, None)
        return self.give(client)

    def heard(self, client: int, now_s: float) -> bool:
        """Whether `client` drives; its word keeps the lease."""
        self.expire(now_s)
        if self.holder != client:
            return False
        self._heard_s = now_s
        return True

    def expire(self, now_s: float) -> bool:
        """End a lease whose holder is silent; True when it ended now."""
        if self.holder is None or now_s - self._heard_s <= SILENCE_S:
            return False
        self.holder = None
        return True


class Freshness:
    """When a page said something, on this machine's clock: as it arrived, less what it waited longer than the quickest.

    A network that stalls delivers old commands in a burst: they arrive now and are old all the same. The shortest way
    of the last `OFFSET_WINDOW_S` is taken as no delay at all, so clocks need not agree.
    """

    def __init__(self) -> None:
        self._ways: deque[tuple[float, float]] = deque()  # (received, received - sent), the shortest first
        self._heard_s = float("-inf")

    def stamp_s(self, sent_ms: float, received_s: float) -> float:
        """When the message was sent, at most now.

        Args:
            sent_ms: of the page's clock.
            received_s: of ours.
        """
        if received_s - self._heard_s > SILENCE_S:  # its clock may have slept
            self._ways.clear()
        self._heard_s = received_s
        way = received_s - sent_ms / 1000
        while self._ways and self._ways[-1][1] >= way:
            self._ways.pop()
        self._ways.append((received_s, way))
        while self._ways[0][0] < received_s - OFFSET_WINDOW_S:
            self._ways.popleft()
        return received_s - (way - self._ways[0][1])


class RateLimit:
    """A bucket of `BURST` messages that fills with `RATE_HZ`."""

    def __init__(self, now_s: float) -> None:
        self._left, self._at_s = BURST, now_s

    def allows(self, now_s: float) -> bool:
        """Count one message; False when there are too many."""
        self._left = min(BURST, self._left + (now_s - self._at_s) * RATE_HZ) - 1
        self._at_s = now_s
        return self._left >= 0
