"""The few names of Cython that the core uses, typed as the stand-ins of ybsmart._core._shim are."""

import builtins
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar
from typing import final as final

T = TypeVar("T")

compiled: builtins.bool

bint: TypeAlias = builtins.bool
int: TypeAlias = builtins.int
Py_ssize_t: TypeAlias = builtins.int
longlong: TypeAlias = builtins.int
ulonglong: TypeAlias = builtins.int
double: TypeAlias = builtins.float

def cclass(cls: type[T], /) -> type[T]: ...
def cfunc(function: T, /) -> T: ...
def ccall(function: T, /) -> T: ...
def inline(function: T, /) -> T: ...
def no_gc(cls: T, /) -> T: ...
def freelist(size: builtins.int, /) -> Callable[[T], T]: ...
def cast(type: Any, obj: Any, /) -> Any: ...
def critical_section(obj: object, /) -> AbstractContextManager[builtins.bool]: ...

# Not Cython's: the shim's alone, used under `if not cython.compiled`.
def new_guard() -> object: ...
