"""What an operator's monitoring is told of the books, read from the database when it asks (docs/metrics.md).

Whichever process answers says the same. Money stands here to raise an alarm with, not to be added up: the format
knows floats only.
"""

from collections.abc import Iterator

from django.conf import settings
from django.db import connection, transaction
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

STATEMENT_TIMEOUT_MS = 3000
RECENT_S = 300

RECONCILIATION = """
    SELECT drift_pico, drift_tokens, (details ->> 'refused')::bigint, extract(epoch FROM statement_timestamp() - at)
    FROM billing_reconciliation ORDER BY id DESC LIMIT 1
"""
HOLDS = """
    SELECT p.currency, count(*), sum(h.amount_pico), count(*) FILTER (WHERE h.expires_at < statement_timestamp()),
           extract(epoch FROM statement_timestamp() - min(h.held_at))
    FROM billing_hold h JOIN billing_price p ON p.id = h.price_id GROUP BY p.currency ORDER BY p.currency
"""
PROCESSES = """
    SELECT count(*) FILTER (WHERE is_alive), count(*) FILTER (WHERE NOT is_alive)
    FROM (SELECT beat_at > statement_timestamp() - make_interval(secs => %s) AS is_alive FROM billing_process) p
"""
DELIVERIES = """
    SELECT count(*) FILTER (WHERE next_attempt_at <= statement_timestamp()),
           count(*) FILTER (WHERE next_attempt_at IS NULL AND delivered_at IS NULL AND NOT EXISTS (
               SELECT FROM billing_delivery l
               WHERE l.event_id = d.event_id AND l.medium = d.medium AND l.replay > d.replay))
    FROM billing_delivery d
"""
DRAFTS = """
    SELECT count(*) FILTER (WHERE held_back <> ''),
           coalesce(extract(epoch FROM statement_timestamp() - min(closed_at)), 0)
    FROM billing_invoice WHERE status = 'draft'
"""
# A request's id begins with its time in milliseconds (UUIDv7), and is what the ledger is sorted by.
RECENT = """
    SELECT status, count(*) FROM billing_usagerecord
    WHERE kind = 'usage' AND request_id >= rpad(lpad(to_hex(
        (extract(epoch FROM statement_timestamp()) * 1000)::bigint - %s * 1000), 12, '0'), 32, '0')::uuid
    GROUP BY status ORDER BY status
"""


class Books(Collector):
    """One look at the books. Raises OperationalError if the database does not answer in time."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}")
            yield from self._reconciliation()
            yield from self._holds()
            yield from self._processes()
            yield from self._deliveries()
            yield from self._drafts()
            yield _by("recent_requests", "status", _RECENT_HELP, dict(_rows(RECENT, RECENT_S)))

    def _reconciliation(self) -> Iterator[GaugeMetricFamily]:
        """Say nothing before the first run: a zero would look like an answer."""
        for drift_pico, drift_tokens, refused, age_s in _rows(RECONCILIATION):
            yield _one("drift_pico", "Drift that the last reconciliation found.", drift_pico)
            yield _one("drift_tokens", "The same, in tokens.", drift_tokens)
            yield _one("refused_rows", "Rows in spools that PostgreSQL refuses.", refused or 0)
            yield _one("reconciliation_age_seconds", "Since the last reconciliation.", age_s)

    def _holds(self) -> Iterator[GaugeMetricFamily]:
        rows = list(_rows(HOLDS))
        held = {currency: pico for currency, _, pico, *_ in rows}
        yield _one("open_holds", "Requests with money set aside.", sum(row[1] for row in rows))
        yield _by("held_pico", "currency", "What open holds set aside, in pico-units.", held)
        yield _one(
            "overdue_holds",
            "Holds past their expiry, for the reaper to end.",
            sum(row[3] for row in rows),
        )
        yield _one(
            "oldest_hold_seconds",
            "Age of the oldest open hold.",
            max((row[4] for row in rows), default=0),
        )

    def _processes(self) -> Iterator[GaugeMetricFamily]:
        ((alive, silent),) = _rows(PROCESSES, settings.REAP_AFTER_S)
        yield _by(
            "processes",
            "state",
            "Gateway processes, and those that fell silent within a day.",
            {"alive": alive, "silent": silent},
        )

    def _deliveries(self) -> Iterator[GaugeMetricFamily]:
        ((due, failed),) = _rows(DELIVERIES)
        yield _by(
            "event_deliveries",
            "state",
            "Events that wait to be sent to their organization, and those given up.",
            {"due": due, "failed": failed},
        )

    def _drafts(self) -> Iterator[GaugeMetricFamily]:
        ((held_back, oldest_s),) = _rows(DRAFTS)
        yield _one("drafts_held_back", "Drafts that are not issued, and say why.", held_back)
        yield _one(
            "oldest_unissued_seconds",
            "Since the oldest period was closed that is not invoiced.",
            oldest_s,
        )


_RECENT_HELP = f"Requests received in the last {RECENT_S} s, by how they are booked."


def _rows(query: str, *parameters: int) -> list[tuple]:  # type: ignore[type-arg]
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return list(cursor.fetchall())


def _one(name: str, help: str, value: object) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tessera_{name}", help, value=float(str(value)))


def _by(name: str, label: str, help: str, values: dict[str, object]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tessera_{name}", help, labels=[label])
    for each, value in values.items():
        family.add_metric([each], float(str(value)))
    return family
