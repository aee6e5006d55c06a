"""The SQL of `yb_servers()`, in the forms that the releases of YugabyteDB have.

Decides columns, types and their order. Must never hold the topology itself: the function reads it
from a file at each call, so that servers need not run to be told of a change.
"""

COLUMNS = {
    "host": "text",
    "port": "bigint",
    "num_connections": "bigint",
    "node_type": "text",
    "cloud": "text",
    "region": "text",
    "zone": "text",
    "public_ip": "text",
    "uuid": "text",
    "universe_uuid": "text",
}

SETTING = "ybsmart.topology_file"

DROP = "DROP FUNCTION IF EXISTS pg_catalog.yb_servers()"


def create(columns: int) -> str:
    """CREATE FUNCTION for the first so many columns. No empty line: single-user mode ends at one.

    SECURITY DEFINER, because every role may call it and only a superuser may read files.
    """
    names = list(COLUMNS.items())[:columns]
    typed = ", ".join(f"{name} {type_}" for name, type_ in names)
    row = ", ".join(f"s.{name}" for name, _ in names)
    return f"""\
CREATE FUNCTION pg_catalog.yb_servers() RETURNS TABLE ({typed})
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
  topology jsonb := pg_read_file(current_setting('{SETTING}'))::jsonb;
BEGIN
  PERFORM pg_sleep((topology->>'delay')::float8);
  IF topology->>'error' IS NOT NULL THEN
    RAISE EXCEPTION '%', topology->>'error';
  END IF;
  RETURN QUERY SELECT {row} FROM jsonb_to_recordset(topology->'servers') AS s({typed});
END $$"""
