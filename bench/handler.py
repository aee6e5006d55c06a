"""The WSGI application of the `http` case: one query per request, on one contender's pool."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from bench.contenders import CLASSES

_setup = json.loads(os.environ["BENCH_SETUP"])
_pool = CLASSES[_setup["contender"]](_setup["conninfo"], _setup["hosts"], _setup["size"])
_pool.warm(_setup["size"])


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    # /cpu is for the load generator's side: what this process has used so far.
    value = time.process_time() if environ["PATH_INFO"] == "/cpu" else _pool.scalar()
    body = str(value).encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
