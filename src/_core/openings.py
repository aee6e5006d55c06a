"""Which connections are opened, when, and on whose account.

Decides: that another is to be opened, for the first waiters nothing is being opened for and up to
the minimum; when it may be, after a failure, while the server has too many clients, or while what
is lent may come back first; who is told when it fails.

Never: opens one. The shell does, and reports `_opened` or `_opening_failed`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import monotonic
    from .state import PoolState
    from .waiters import Waiter


# How many staggers after the last opening the next is due, whatever is returned.
_PATIENCE = 5


@cython.final
@cython.cclass
class Opening:
    """A connection being opened: it counts as a connection, and has, at first, a requester."""

    __slots__ = ("_next", "_over", "_owner")

    _owner: Waiter
    if cython.compiled:  # else the name is not there yet
        _next: Opening
    _over: cython.bint

    def __init__(self) -> None:
        self._over = False
        self._owner = None  # type: ignore[assignment]
        self._next = None  # type: ignore[assignment]

    @property
    def owner(self) -> Waiter | None:
        """Who is told if it fails. None when nobody in the queue depends on it. For tests; needs a
        pool at rest."""
        return self._owner

    @property
    def has_owner(self) -> bool:
        """Whether anybody is told if it fails, at this moment."""
        return self._owner is not None


@cython.cclass
class PoolOpenings(PoolState):
    __slots__ = (
        "_connect_after",
        "_connect_limit",
        "_last_opening",
        "_last_return",
        "_max_connecting",
        "_openings",
        "_refilling",
        "_retrying",
        "_squeezed_to",
        "_squeezed_until",
        "_stagger",
    )

    _openings: Opening  # those under way, linked
    _max_connecting: cython.Py_ssize_t
    _connect_limit: cython.Py_ssize_t  # how many may be opened at a time just now
    _connect_after: cython.double  # and from when on
    _last_opening: cython.double  # when the last one was begun
    _last_return: cython.double  # when somebody returned a connection last
    _stagger: cython.double
    _retrying: cython.bint  # somebody waits to open what may not be opened yet
    _refilling: cython.bint  # up to the minimum, without anybody asking
    _squeezed_to: cython.Py_ssize_t  # the maximum while the server has too many clients
    _squeezed_until: cython.double

    def _start_empty(self) -> None:
        PoolState._start_empty(self)
        self._openings = None  # type: ignore[assignment]
        self._connect_limit = self._max_connecting
        self._connect_after = self._last_opening = self._last_return = 0.0
        self._refilling = self._retrying = False
        self._squeezed_to = 0
        self._squeezed_until = 0.0

    def _inheritance(self, error: BaseException) -> tuple[list[Any], list[object]]:
        opening: Opening = self._openings
        while opening is not None:
            # A greenlet that is at it survives the fork.
            opening._over = True
            opening = opening._next
        pgconns, references = PoolState._inheritance(self, error)
        return pgconns, [*references, self._openings]

    @cython.cfunc
    def _next_opening(self, spare: Opening) -> Opening:
        """Use `spare` for the first waiter nothing is being opened for, if one may be opened.

        As many are opened at a time as there are waiters, and always for those in front; and as
        many as the minimum still lacks. Caller holds the section.
        """
        now: cython.double
        if not self._lacks():
            return None  # type: ignore[return-value]
        now = monotonic()
        if now < self._may_open_from():
            return None  # type: ignore[return-value]
        if now >= self._squeezed_until:
            self._squeezed_until = 0.0
        return self._start_opening(spare, now)

    @cython.cfunc
    def _start_opening(self, spare: Opening, now: cython.double) -> Opening:
        """Count one that is being opened. Caller holds the section."""
        self._last_opening = now
        self._connecting += 1
        self._total += 1
        if self._total > self._peak:
            self._peak = self._total
        self._assign(spare)
        spare._next = self._openings
        self._openings = spare
        return spare

    @cython.cfunc
    def _replace(self) -> object:
        """Open a connection in the stead of one that was closed, although nobody waits for it."""
        spare: Opening = Opening()
        opening: Opening = None  # type: ignore[assignment]
        now: cython.double = monotonic()
        with self._guard:
            if (
                not self._closing
                and self._connecting < self._connect_limit
                and self._total < self._max_size
                and now >= self._may_open_from()
            ):
                opening = self._start_opening(spare, now)
        self._begin(opening)
        return None

    @cython.cfunc
    def _lacks(self) -> cython.bint:
        """Whether something is wanted that is not being opened. Caller holds the section."""
        return (self._connecting < self._connect_limit and self._total < self._max_size) and (
            self._waiting > self._connecting or self._lacks_minimum()
        )

    @cython.cfunc
    def _lacks_minimum(self) -> cython.bint:
        return self._refilling and self._total < self._min_size and not self._closing

    @cython.cfunc
    def _may_open_from(self) -> cython.double:
        """The time before which nothing is opened: after a failure, while the server has too many
        clients, or while what is lent may come back before another would be open. Caller holds
        the section."""
        time: cython.double = self._connect_after
        if self._total >= self._squeezed_to and self._squeezed_until > time:
            time = self._squeezed_until
        if self._connecting and self._total > self._connecting and not self._lacks_minimum():
            # As long as some come back it may be worth while to wait, within limits.
            quiet: cython.double = self._last_opening
            if self._last_return > quiet:
                quiet = self._last_return
            quiet += self._stagger
            latest: cython.double = self._last_opening + _PATIENCE * self._stagger
            if quiet > latest:
                quiet = latest
            if quiet > time:
                time = quiet
        return time

    @cython.cfunc
    def _assign(self, opening: Opening) -> object:
        """Give the opening to the first waiter without one. Caller holds the section."""
        waiter: Waiter = self._queue.first()
        opening._owner = None  # type: ignore[assignment]
        while waiter is not None and self._opening_of(waiter) is not None:
            waiter = waiter._next
        opening._owner = waiter
        return None

    @cython.cfunc
    def _opening_of(self, waiter: Waiter) -> Opening:
        """The opening whose requester this waiter is, or None. Caller holds the section."""
        opening: Opening = self._openings
        while opening is not None and opening._owner is not waiter:
            opening = opening._next
        return opening

    @cython.cfunc
    def _left(self, waiter: Waiter) -> object:
        """A waiter left the queue; the next in line inherits its opening. Caller holds the
        section."""
        opening: Opening
        self._waiting -= 1
        if self._openings is not None:
            opening = self._opening_of(waiter)
            if opening is not None:
                self._assign(opening)
        return None

    @cython.cfunc
    def _finish(self, opening: Opening) -> Waiter:
        """The opening is over; return its requester, if it has one. Caller holds the section."""
        before: Opening = self._openings
        owner: Waiter = opening._owner
        if before is opening:
            self._openings = opening._next
        else:
            while before._next is not opening:
                before = before._next
            before._next = opening._next
        opening._next = None  # type: ignore[assignment]
        opening._owner = None  # type: ignore[assignment]
        opening._over = True
        self._connecting -= 1
        return owner

    @cython.cfunc
    def _begin(self, opening: Opening | None) -> object:
        """Have the shell open it, if there is anything to open."""
        while opening is not None:
            try:
                self._open(opening)
            except Exception as exc:
                # Nobody but the requester is to hear that, say, no thread could be started.
                opening = self._opening_failed(opening, exc, 0.0, True)
            except BaseException as exc:
                # An interrupt is for this thread. Whoever the connection was for still waits.
                self._begin(self._opening_failed(opening, exc, 0.0, False))
                raise
            else:
                break
        return None

    @cython.cfunc
    def _begin_all(self) -> object:
        """Begin to open all that may be opened now."""
        spare: Opening
        opening: Opening
        while True:
            spare = Opening()
            with self._guard:
                opening = self._next_opening(spare)
            if opening is None:
                return None
            self._begin(opening)

    def _opening_failed(
        self, opening: Opening, error: BaseException, delay: cython.double, tell: cython.bint
    ) -> Opening | None:
        """Free the place; `tell` the requester, if it still waits. Return what to open next.

        Nothing is opened for `delay` seconds, and then one at a time.
        """
        spare: Opening = Opening()
        owner: Waiter
        following: Opening
        with self._guard:
            if opening._over:
                return None
            owner = self._finish(opening)
            self._total -= 1
            if delay > 0.0:
                self._connect_after = monotonic() + delay
                self._connect_limit = 1
            if owner is not None and tell:
                self._queue.fail(owner, error)
                self._waiting -= 1
            following = self._next_opening(spare)
        if owner is not None and tell:
            owner._wake()  # type: ignore[operator]
        try:
            self._report()
        except BaseException:
            self._begin(following)
            raise
        return following

    def _set_sizes(self, min_size: cython.Py_ssize_t, max_size: cython.Py_ssize_t) -> None:
        self._notice_fork()
        with self._guard:
            self._min_size = min_size
            self._max_size = max_size
        self._begin_all()
        self._see_to_retry()

    def _refill(self, on: bool) -> None:
        """Keep the minimum open from now on, or, until told again, open only what is asked for."""
        self._notice_fork()
        self._refilling = on
        self._begin_all()
        self._see_to_retry()

    def _is_refilling(self) -> bool:
        return self._refilling

    def _squeeze(self, seconds: cython.double) -> bool:
        """The server has too many clients: for a while, make do with those there are. False: there
        are none."""
        with self._guard:
            if self._total == self._connecting:
                return False
            self._squeezed_to = self._total - self._connecting
            self._squeezed_until = monotonic() + seconds
        return True

    def _forgive(self) -> None:
        """Forget earlier failures: what is wanted next is opened at once."""
        with self._guard:
            self._connect_after = 0.0

    def _claim_retry(self) -> bool:
        """Become the one who waits to open what may not be opened yet. False: nothing is wanted,
        or somebody else is. Ends with `_wait_to_retry` below zero, or `_retry`."""
        with self._guard:
            if self._retrying or not self._lacks():
                return False
            self._retrying = True
        return True

    @cython.cfunc
    def _see_to_retry(self) -> object:
        """What is wanted and may not be opened yet: have somebody wait for the time."""
        if self._claim_retry():
            try:
                self._retry_later()
            except BaseException:
                self._retrying = False
                raise
        return None

    def _wait_to_retry(self) -> float:
        """Seconds until something that is wanted may be opened; below zero: nothing is any more."""
        now: cython.double = monotonic()
        time: cython.double
        with self._guard:
            if not self._lacks():
                self._retrying = False
                return -1.0
            time = self._may_open_from()
        return max(time - now, 0.0)

    def _retry(self) -> Opening | None:
        """End the wait to retry; return what may be opened now."""
        spare: Opening = Opening()
        with self._guard:
            self._retrying = False
            return self._next_opening(spare)
