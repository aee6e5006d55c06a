"""What a pool's shell does about the core's decisions: the methods that it must supply.

Never called inside a critical section. A hook may raise anything at any time: the core puts its
books right and passes the exception on.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from .waiters import Waiter


@cython.cclass
class Hooks:
    __slots__ = ()

    def _forked(self) -> None:
        """This is a forked child, and what is here is its parent's: begin anew, by `_inheritance`
        and `_start_empty`."""
        raise NotImplementedError

    def _must_be_seconds(self, timeout: Any) -> None:
        """Raise unless this odd time-out can be taken for a number of seconds."""
        raise NotImplementedError

    def _new_waiter(self, timeout: Any) -> Waiter:
        """Make a waiter, with something to sleep on; raise if there is to be no waiting at all."""
        raise NotImplementedError

    def _sleep(self, waiter: Waiter, timeout: Any) -> None:
        """Sleep until the waiter is settled, or `_withdraw` it and raise."""
        raise NotImplementedError

    def _open(self, opening: Any) -> None:
        """Start to open a connection; `_opened` or `_opening_failed` must follow, and soon."""
        raise NotImplementedError

    def _retry_later(self) -> None:
        """See to it that somebody goes by `_wait_to_retry`, in the caller's stead."""
        raise NotImplementedError

    def _is_alive(self, conn: Any) -> bool:
        """Whether an idle connection still has its server, as far as its socket knows."""
        raise NotImplementedError

    def _passes(self, conn: Any, thorough: bool) -> bool:
        """Whether an idle connection may stay: as `_is_alive`, or with a round trip."""
        raise NotImplementedError

    def _vet(self, conn: Any) -> bool:
        """Run the user's check on a connection about to be lent: whether it passed."""
        raise NotImplementedError

    def _pause(self, timeout: Any, started: float, failures: int) -> Any:
        """After so many failed checks before this one, of a request that began at `started`: sleep
        a while; return the time-out that is left, or raise."""
        raise NotImplementedError

    def _restore(self, conn: Any) -> None:
        """Undo what the shell has altered for its own use, and say so to the slot."""
        raise NotImplementedError

    def _failed_with(self, conn: Any, error: Any) -> None:
        """The block that a connection was lent to has ended with an error."""
        raise NotImplementedError

    def _clean(self, conn: Any) -> bool:
        """Make a returned connection fit for the next user. False: close it instead."""
        raise NotImplementedError

    def _close_conn(self, conn: Any, reason: Any) -> None:
        """Close a connection; errors are the hook's to deal with."""
        raise NotImplementedError

    def _trace(self, slot: Any) -> None:
        """Note where a connection is taken."""
        raise NotImplementedError

    def _untrace(self, slot: Any) -> None:
        """It is returned."""
        raise NotImplementedError

    def _notify(self, event: str, conn: Any, about: Any) -> None:
        """Call the listeners of an event: "acquire", "release" after `about`, an error or None, or
        "remove" for the reason `about`."""
        raise NotImplementedError

    def _progressed(self) -> None:
        """A pool that is closing or waited for has won or lost a connection."""
        raise NotImplementedError

    def _lost_one(self, slot: Any) -> None:
        """A lent connection was dropped instead of returned."""
        raise NotImplementedError

    def _too_many(self) -> Exception:
        """The error for a request that finds the queue full."""
        raise NotImplementedError

    def _not_lent(self, conn: Any) -> Exception:
        """The error for a connection that is not on loan from here."""
        raise NotImplementedError

    def _closed_error(self) -> Exception:
        """The error for a request to a closing pool."""
        raise NotImplementedError
