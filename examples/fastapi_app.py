"""FastAPI with endpoints that are plain functions, which it runs in threads.

Run it with `make example NAME=fastapi`, or `python examples/fastapi_app.py`. In production:
`uvicorn --app-dir examples --workers 2 fastapi_app:app`, with DATABASE_URL set. The same works
with Starlette, which is underneath.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from local import PORT, database

import ybsmart

pool = ybsmart.ConnectionPool(max_size=8, timeout=5, name="web")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    # Waits for those who have connections, so not on the event loop.
    await run_in_threadpool(pool.end, 10)


app = FastAPI(lifespan=lifespan)


def connection() -> Iterator[ybsmart.Connection]:
    with pool.connection() as conn:
        yield conn


# One connection and one transaction for a request. "function": it is committed before the answer
# is sent. FastAPI's default is to commit afterwards, too late to report that the commit failed.
Transaction = Annotated[ybsmart.Connection, Depends(connection, scope="function")]


@app.get("/", response_class=PlainTextResponse)
def index() -> str:
    node = pool.query("SELECT host(inet_server_addr())", retry=True).scalar()
    return f"served by {node}\n"


@app.get("/transaction", response_class=PlainTextResponse)
def transaction(conn: Transaction) -> str:
    conn.execute("CREATE TEMPORARY TABLE visits (at timestamptz) ON COMMIT DROP")
    conn.execute("INSERT INTO visits VALUES (now())")
    (count,) = conn.execute("SELECT count(*) FROM visits").fetchone()
    return f"{count} visit\n"


@app.exception_handler(ybsmart.PoolError)
def busy(request: Request, error: Exception) -> PlainTextResponse:
    return PlainTextResponse("Please try again in a moment.\n", 503, {"Retry-After": "1"})


if __name__ == "__main__":
    with database():
        uvicorn.run(app, port=PORT)
