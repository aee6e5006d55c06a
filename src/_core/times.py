"""What is counted of times: how many, their sum, and how many of which length.

Decides nothing. The owner calls it within the owner's critical section: nothing here allocates
what the garbage collector tracks or runs Python code.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:
    from math import floor


@cython.final
@cython.cclass
class Times:
    """Times in seconds, all of them in `total`, and by power of two of a microsecond."""

    __slots__ = ("_buckets", "_total")

    _total: cython.double
    if not cython.compiled:
        _buckets: list[int]
    else:  # plain integers, which cost nothing to add to
        _buckets: cython.longlong[32]  # type: ignore[no-redef, type-arg, valid-type]

    def __init__(self) -> None:
        self._total = 0.0
        if not cython.compiled:
            self._buckets = [0] * 32

    @cython.cfunc
    @cython.inline
    def _add(self, seconds: cython.double) -> object:
        us: cython.longlong
        bits: cython.Py_ssize_t = 0
        if not cython.compiled:
            # Not `int`, which has its argument in a tuple, and that is tracked.
            bits = floor(seconds * 1e6).bit_length()
            if bits > 31:
                bits = 31
        else:
            us = cython.cast(cython.longlong, seconds * 1e6)
            while us > 0 and bits < 31:
                us >>= 1
                bits += 1
        self._total += seconds
        self._buckets[bits] += 1
        return None

    @cython.cfunc
    def _copy(self, of: object) -> object:
        other: Times = of  # type: ignore[assignment]
        i: cython.Py_ssize_t
        self._total = other._total
        for i in range(32):
            self._buckets[i] = other._buckets[i]
        return None

    @property
    def number(self) -> int:
        return sum(self.buckets)

    @property
    def total(self) -> float:
        """Seconds."""
        return self._total

    @property
    def buckets(self) -> list[int]:
        """Bucket n: how many were below 2**n microseconds, and in no lower one."""
        return [self._buckets[i] for i in range(32)]

    def __repr__(self) -> str:
        return f"<Times number={self.number} total={self._total:.6f}>"
