"""SQLAlchemy on top of the pool, instead of its own.

Run it with `make example NAME=sqlalchemy`, or `python examples/sqlalchemy_app.py`.
"""

from local import database
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import ybsmart


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    page: Mapped[str]


def main() -> None:
    with database(nodes=1), ybsmart.ConnectionPool(max_size=8, close_returns=True) as pool:
        # NullPool: SQLAlchemy keeps nothing. It asks for a connection when it needs one and
        # closes it when it is done, which, with close_returns, gives it back.
        engine = create_engine("postgresql+psycopg://", creator=pool.getconn, poolclass=NullPool)
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            session.add_all([Visit(page="/"), Visit(page="/about")])
        with Session(engine) as session:
            print("visits:", session.query(Visit).count())
        with engine.connect() as conn:
            print("served by", conn.execute(text("SELECT host(inet_server_addr())")).scalar())
        Base.metadata.drop_all(engine)
        stats = pool.get_stats()
        print("loans:", stats["requests_num"], "connections:", stats["connections_num"])


if __name__ == "__main__":
    main()
