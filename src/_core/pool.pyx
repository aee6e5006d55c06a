"""The pool compiled: all its parts in one module, because Cython reaches C fields only within one.

Has nothing of its own. Uncompiled, the parts are modules that import each other; an included file
must not have a `from __future__` of its own.
"""

from __future__ import annotations

from cpython.pythread cimport PyThread_get_thread_ident as get_ident
from cpython.time cimport monotonic

include "waiters.py"
include "slots.py"
include "hooks.py"
include "state.py"
include "openings.py"
include "closing.py"
include "lending.py"
include "queueing.py"
include "sweeping.py"
include "loans.py"
include "checkout.py"
include "pool.py"
