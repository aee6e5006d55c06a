"""Build the compiled core; everything else about the package is in pyproject.toml.

YBSMART_BUILD says how:
  c       compile, or fail (the default on CPython)
  python  no extension, and neither Cython nor a compiler needed; yields a py3-none-any wheel
  auto    compile if that works, otherwise as `python`
"""

import os
import sys

from setuptools import setup

SOURCES = {
    "hosts": "src/_core/hosts.pyx",
    "parking": "src/_core/parking.pyx",
    "pool": "src/_core/pool.pyx",
}

DIRECTIVES = {
    "language_level": 3,
    "freethreading_compatible": True,  # every access to shared state is in a critical section
    "annotation_typing": True,
    "binding": True,  # signatures as in the pure build
    "auto_pickle": False,  # the inner state of a pool must not be picklable by accident
}


class CompilerTrouble(Exception):
    """No C compiler, or no headers, or they do not work. An error in our own code is not this."""


def setup_with_extensions() -> None:
    from Cython.Build import build_ext  # not needed for the pure build
    from Cython.Compiler.Errors import CompileError as CythonError
    from Cython.Distutils import Extension
    from setuptools.errors import CCompilerError, PlatformError

    class BuildExt(build_ext):
        def run(self) -> None:
            try:
                super().run()
            except (CCompilerError, PlatformError) as exc:
                raise CompilerTrouble(str(exc)) from exc
            except CythonError:
                sys.exit("ybsmart: Cython does not accept the core, see its message above")

    # One source, two names: src/_core/x.py is imported as ybsmart._core.x and compiled to
    # ybsmart._core._c.x, so no build can shadow the source beside it. What hosts.py and pool.py
    # are made of is compiled with them, see the .pyx of each.
    setup(
        cmdclass={"build_ext": BuildExt},
        ext_modules=[
            Extension(
                f"ybsmart._core._c.{name}",
                [source],
                cython_directives=DIRECTIVES,
                cython_c_in_temp=True,
            )
            for name, source in SOURCES.items()
        ],
    )


def main() -> None:
    default = "c" if sys.implementation.name == "cpython" else "python"
    mode = os.environ.get("YBSMART_BUILD") or default
    if mode not in ("c", "python", "auto"):
        sys.exit(f"YBSMART_BUILD={mode!r} is not allowed: use 'c', 'python' or 'auto'")
    if mode == "python":
        setup()
        return
    try:
        setup_with_extensions()
    except CompilerTrouble as exc:
        if mode == "c":
            sys.exit(
                f"ybsmart: the C compiler failed ({exc}). Install one, with Python's headers, or "
                "set YBSMART_BUILD=python for the pure Python build (same behaviour, slower) "
                "or YBSMART_BUILD=auto to compile only where that works."
            )
        # Not an optional extension: that would yield a platform wheel with nothing compiled in it.
        print(f"ybsmart: the C compiler failed ({exc}); going on with the pure Python build")
        setup()


main()
