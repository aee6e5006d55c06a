"""A database backend for Django: its own for PostgreSQL, with ybsmart's pool."""
