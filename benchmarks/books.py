"""The ledger after a round: every request is there, at the right price, and no hold is left open."""

import time
from dataclasses import dataclass

import psycopg

from benchmarks.work import Work

KINDS = """
SELECT status, usage_source, tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out,
       amount_pico, count(*)
FROM billing_usagerecord WHERE model_name = %s
GROUP BY 1, 2, 3, 4, 5, 6, 7
"""
HOLDS = "SELECT count(*) FROM billing_hold"
COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
STATISTICS_LATE_S = 1.1  # PostgreSQL's own figures follow within a second


class Misbooked(Exception):
    """The gateway's books are not what the benchmark did: its figures are worth nothing."""


@dataclass
class Books:
    """Reads the books of the database at `url`, and remembers how many requests they must hold."""

    url: str

    def __post_init__(self) -> None:
        self._made: dict[str, int] = {}

    def commits(self) -> int:
        """Return how many transactions have been committed so far."""
        time.sleep(STATISTICS_LATE_S)
        with psycopg.connect(self.url) as connection:
            found = connection.execute(COMMITS).fetchone()
        assert found is not None
        return int(found[0])

    def check(self, work: Work, requests: int) -> None:
        """Check after so many more requests of this work. Raises Misbooked."""
        made = self._made[work.model] = self._made.get(work.model, 0) + requests
        right = ("ok", "upstream", work.tokens_in_text, work.tokens_in_image, 0, work.tokens_out)
        with psycopg.connect(self.url) as connection:
            found = connection.execute(KINDS, [work.model]).fetchall()
            holds = connection.execute(HOLDS).fetchone()
        if found != [(*right, work.amount_pico, made)]:
            raise Misbooked(f"{work.name}: {found}, not {made} of {(*right, work.amount_pico)}")
        if holds != (0,):
            raise Misbooked(f"{work.name}: {holds} holds are still open")
