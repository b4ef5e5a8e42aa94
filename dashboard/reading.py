"""Reading for a page: PostgreSQL ends what takes longer than a person waits, and keeps its time for bookings."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import OperationalError, connection, transaction
from psycopg.errors import QueryCanceled


class TooMuch(Exception):
    """A statement would have had to read more than there is time for."""


@contextmanager
def bounded() -> Iterator[None]:
    """Read in a transaction whose statements take PAGE_READ_TIMEOUT_MS at most; TooMuch where one would not."""
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                limit = f"{settings.PAGE_READ_TIMEOUT_MS}ms"
                cursor.execute("SELECT set_config('statement_timeout', %s, true)", [limit])
            yield
    except OperationalError as error:
        if isinstance(error.__cause__, QueryCanceled):
            raise TooMuch from error
        raise
