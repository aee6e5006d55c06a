"""A plain script: threads move money between two accounts, and none of it is lost.

Run it with `make example NAME=script`, or `python examples/script.py`.
"""

import threading

import psycopg
from local import database

import ybsmart

THREADS, TRANSFERS = 8, 25


def main() -> None:
    with database(nodes=1), ybsmart.ConnectionPool(max_size=4) as pool:
        with pool.connection() as conn:
            conn.execute("DROP TABLE IF EXISTS accounts")
            conn.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)")
            conn.execute("INSERT INTO accounts VALUES (1, 1000), (2, 1000)")

        def transfer(conn: psycopg.Connection) -> None:
            conn.execute("UPDATE accounts SET balance = balance - 1 WHERE id = 1")
            conn.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 2")

        def work() -> None:
            for _ in range(TRANSFERS):
                # Those who meet are sent back by the server, and begin again.
                pool.run_transaction(
                    transfer,
                    isolation_level=psycopg.IsolationLevel.SERIALIZABLE,
                    max_retries=1000,
                )

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        rows = pool.query("SELECT id, balance FROM accounts ORDER BY id").rows
        pool.query("DROP TABLE accounts")
        stats = pool.get_stats()
        print("balances:", dict(rows))
        print("connections opened:", stats["connections_num"])
        print("loans:", stats["requests_num"])


if __name__ == "__main__":
    main()
