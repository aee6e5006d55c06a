"""Flask, with one pool for the process.

Run it with `make example NAME=flask`, or `python examples/flask_app.py`. In production:
`gunicorn --chdir examples --workers 2 --threads 8 flask_app:app`, with DATABASE_URL set.
"""

from flask import Flask, Response
from local import PORT, database

import ybsmart

app = Flask(__name__)
# Connects with the first request, so each of gunicorn's workers has its own connections.
pool = ybsmart.ConnectionPool(max_size=8, timeout=5, name="web")


@app.get("/")
def index() -> str:
    # A question may be asked again when its connection breaks.
    node = pool.query("SELECT host(inet_server_addr())", retry=True).scalar()
    return f"served by {node}\n"


@app.get("/transaction")
def transaction() -> str:
    with pool.connection() as conn:  # committed at the end, rolled back after an exception
        conn.execute("CREATE TEMPORARY TABLE visits (at timestamptz) ON COMMIT DROP")
        conn.execute("INSERT INTO visits VALUES (now())")
        (count,) = conn.execute("SELECT count(*) FROM visits").fetchone()
    return f"{count} visit\n"


@app.get("/health")
def health() -> dict:
    stats = pool.get_stats()
    return {name: stats[name] for name in ("pool_size", "pool_available", "requests_waiting")}


@app.errorhandler(ybsmart.PoolError)
def busy(error: ybsmart.PoolError) -> Response:
    app.logger.warning("%s", error)  # says who has the connections
    return Response("Please try again in a moment.\n", 503, {"Retry-After": "1"})


if __name__ == "__main__":
    with database(), pool:
        app.run(port=PORT, threaded=True)
