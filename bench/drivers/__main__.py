"""Put psycopg-yugabytedb and ybsmart through the same scenarios, and print what each did.

The two cannot be installed side by side, because the rival occupies the name `psycopg`. Give it an
environment of its own (its libpq is the system's: Debian's package libpq5):

    python3 -m venv /tmp/rival
    /tmp/rival/bin/pip install psycopg-yugabytedb==3.3.4.1
    .venv/bin/python -m bench.drivers /tmp/rival/bin/python

This process has the servers (`ybsmart.testing`) and asks them where the connections are. Each
scenario is run by a fresh process per driver, with the same parameters, which is told what to open
and close: worker.py, which needs nothing but the driver.

A third argument limits the run to the scenarios whose text contains it.
"""

from __future__ import annotations

import sys

from bench.drivers.scenarios import SCENARIOS, Driver, Gone


def main(rival: str, only: str = "") -> None:
    print("| scenario | psycopg-yugabytedb | ybsmart |\n| --- | --- | --- |")
    for text, run in SCENARIOS:
        if only not in text:
            continue
        cells = []
        for python in (rival, sys.executable):
            driver = Driver(python)
            try:
                cells.append(run(driver))
            except Gone as exc:
                cells.append(str(exc).replace("|", "\\|"))
            finally:
                driver.end()
        print("|", " | ".join([text, *cells]), "|", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
