"""Where Django looks for the backend. Needs Django 5.1, the first with pools, and psycopg 3."""

from django.db.backends.postgresql import base

import ybsmart


class DatabaseWrapper(base.DatabaseWrapper):
    """Takes connections from a pool per process; the parameters of the pool are OPTIONS["pool"].

    Everything else in OPTIONS goes to the connections, such as `load_balance`.
    """

    @property
    def pool(self) -> ybsmart.ConnectionPool | None:
        options = self.settings_dict["OPTIONS"].get("pool")
        if not options:
            return None
        if self.alias not in self._connection_pools:
            pool = ybsmart.ConnectionPool(
                kwargs={**self.get_connection_params(), "autocommit": True},  # Django's own begin
                configure=self._configure_connection,
                name=f"django-{self.alias}",
                **({} if options is True else options),
            )
            # Threads that come at the same time all make one, unopened, and take the first.
            self._connection_pools.setdefault(self.alias, pool)
        return self._connection_pools[self.alias]
