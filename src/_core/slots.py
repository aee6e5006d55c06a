"""What a pool knows of a node, and of a connection: shelves and slots.

Decides nothing: these are the records that the layers of the pool keep, guarded by the pool's
critical section.

Never: refers to a connection that is lent, so that one which is dropped by its holder is collected.
"""

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython


@cython.final
@cython.cclass
class Shelf:
    """The connections of one node: a stack of idle ones, and how many are lent."""

    __slots__ = (
        "_bottom",
        "_evicted_as",
        "_generation",
        "_idle",
        "_key",
        "_label",
        "_lent",
        "_sheds",
        "_suspect_since",
        "_top",
    )

    _key: str
    _label: str
    if cython.compiled:  # else the name is not there yet
        _top: Slot
        _bottom: Slot
    _idle: cython.Py_ssize_t
    _lent: cython.Py_ssize_t
    _generation: cython.Py_ssize_t  # connections of an earlier one are closed when they come back
    _evicted_as: cython.int  # why those are: an index into REASONS
    _sheds: cython.bint  # the next one that comes back is closed, for another node
    _suspect_since: cython.double

    def __init__(self, key: str, label: str) -> None:
        self._key = key
        self._label = label
        self._top = None  # type: ignore[assignment]
        self._bottom = None  # type: ignore[assignment]
        self._idle = 0
        self._lent = 0
        self._generation = 0
        self._evicted_as = 0
        self._sheds = False
        self._suspect_since = 0.0

    @property
    def key(self) -> str:
        """The node's identity, as the shell gave it."""
        return self._key

    @property
    def label(self) -> str:
        """The node's name for people."""
        return self._label

    @property
    def idle(self) -> int:
        return self._idle

    @property
    def lent(self) -> int:
        return self._lent

    def __repr__(self) -> str:
        return f"<Shelf {self._label} idle={self._idle} lent={self._lent}>"


@cython.final
@cython.cclass
class Slot:
    """One physical connection's place in the pool, for as long as it is open.

    It refers to the connection only while the pool has it: a lent connection that is dropped by
    its holder is collected, and the slot learns of it.
    """

    __slots__ = (
        "_altered",
        "_below",
        "_conn",
        "_generation",
        "_holder",
        "_idle_since",
        "_in_block",
        "_lent",
        "_lent_at",
        "_loan",
        "_lost",
        "_note",
        "_pgconn",
        "_retire_at",
        "_retired",
        "_shelf",
        "_was_dropped",
        "_watch",
    )

    _lost: object  # the pool's `_leaked`, by which it knows its own: a returned connection that
    # somebody keeps must not keep the pool
    _shelf: Shelf
    _conn: object
    _pgconn: object
    _watch: object
    _note: object
    if cython.compiled:
        _guard: cython.pymutex  # of _watch and _note; uncompiled, each is read and set in one step
        _below: Slot  # uncompiled, the name is not there yet
    _idle_since: cython.double
    _retire_at: cython.double
    _lent_at: cython.double
    _holder: cython.ulonglong  # 0 unless in somebody's hands: neither on the way there nor back
    _generation: cython.Py_ssize_t
    _loan: cython.longlong  # the number of the present or last one
    _altered: cython.bint  # by the shell, for a use of its own: others get it restored
    _in_block: cython.bint  # lent through a `Checkout`
    _was_dropped: cython.bint  # its place was given away because its holder was collected
    _lent: cython.bint
    _retired: cython.bint

    def __init__(
        self,
        lost: "deque[Slot]",
        conn: Any,
        shelf: Shelf,
        retire_at: cython.double,
    ) -> None:
        self._lost = lost
        self._shelf = shelf
        self._conn = conn
        self._pgconn = conn.pgconn
        self._watch = weakref.ref(conn, self._dropped)
        self._note = None
        self._below = None  # type: ignore[assignment]
        self._idle_since = 0.0
        self._retire_at = retire_at
        self._lent_at = 0.0
        self._holder = 0
        self._generation = shelf._generation
        self._loan = 0
        self._altered = False
        self._in_block = False
        self._was_dropped = False
        self._lent = False
        self._retired = False

    @property
    def shelf(self) -> Shelf:
        return self._shelf

    @property
    def conn(self) -> Any:
        """The connection, whoever has it; None once it is collected or closed. Any thread may read
        it."""
        watch: Any
        if not cython.compiled:
            watch = self._watch
        else:
            with self._guard:
                watch = self._watch
        return watch() if watch is not None else None

    @cython.cfunc
    def _unwatch(self) -> object:
        """Hear of no collection any more; this ends the cycle through the callback."""
        watch: object = None
        if not cython.compiled:
            self._watch = None
        else:
            with self._guard:
                self._watch, watch = watch, self._watch
        return None

    @property
    def loan(self) -> int:
        """The number of the present loan, or of the last."""
        return self._loan

    @property
    def idle(self) -> bool:
        return not self._lent

    @property
    def lent(self) -> bool:
        return self._lent and not self._retired

    @property
    def lent_at(self) -> float:
        """The clock's time when it was lent last."""
        return self._lent_at

    @property
    def holder(self) -> int:
        """The identity of the thread that it was lent to; 0 on the way from one to the next."""
        return self._holder

    @property
    def note(self) -> Any:
        """The shell's, about the present loan. Any thread may read and set it."""
        if not cython.compiled:
            return self._note
        with self._guard:
            return self._note

    @note.setter
    def note(self, note: Any) -> None:
        if not cython.compiled:
            self._note = note
            return
        with self._guard:
            # Swapped, so that what is replaced is let go of outside the section.
            self._note, note = note, self._note

    @property
    def altered(self) -> bool:
        """Whether the shell has changed the connection's settings for a use of its own, and
        `_restore` has to undo that before anybody else gets it."""
        return self._altered

    @altered.setter
    def altered(self, altered: cython.bint) -> None:
        self._altered = altered

    def _dropped(self, _: object) -> None:
        # Called by the garbage collector, so possibly inside a critical section of this very
        # thread: leave a note and return.
        if self._holder:
            self._lost.append(self)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        state = "retired" if self._retired else "lent" if self._lent else "idle"
        return f"<Slot {state} on {self._shelf.label}>"
