# cython: boundscheck=False, wraparound=False, preliminary_late_includes_cy28=True
"""The hosts compiled: all their parts in one module, because Cython reaches C fields only within one.

Has nothing of its own. Uncompiled, the parts are modules that import each other; an included file
must not have a `from __future__` of its own.
"""

from __future__ import annotations

cimport cython
from cpython.time cimport monotonic

include "sections.pxi"
include "tiers.py"
include "leases.py"
include "choosing.py"
include "hosts.py"
