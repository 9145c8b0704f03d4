"""The declarative base of every table, and the column types that they share."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import ColumnElement, DateTime, MetaData, and_, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, mapped_column

from shared.ids import new_id


class Base(DeclarativeBase):
    """Constraint names follow one convention, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


Id = Annotated[UUID, mapped_column(primary_key=True, default=new_id)]
Instant = Annotated[datetime, mapped_column(DateTime(timezone=True))]
CreatedAt = Annotated[
    datetime, mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
]
Json = Annotated[dict[str, Any], mapped_column(JSONB)]


def only(
    column: InstrumentedAttribute[str], value: str | InstrumentedAttribute[str]
) -> ColumnElement[bool]:
    """``column = value``, said as a range, for lists that are ordered by the column and then by id.

    With an equality Postgres may go through all rows by their primary key and throw away those of
    others, in the belief that the wanted ones are spread evenly: a session that rests takes as long
    as everything that came after it. A range in this order is served by the column's own index.
    """
    return and_(column >= value, column <= value)
