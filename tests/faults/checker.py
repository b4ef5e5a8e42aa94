"""The checker: the clients' journal, the upstream's journal and the books, held against each other.

It shares no code with what it checks: the rates are the scenario's, the arithmetic is its own, and a budget's
window is added up from who owns the row and when it was held, not from the window that the row names.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.faults.journal import Entry
from tests.faults.scenario import RATES

Row = dict[str, Any]
SHOWN_MAX = 5
FEE_PICO = RATES["request_micro"] * 10**6

WINDOWS = """
SELECT w.*, coalesce(sum(r.amount_pico), 0) AS booked_pico,
       coalesce(sum(r.tokens_in_text + r.tokens_in_image + r.tokens_in_cached + r.tokens_out), 0) AS booked_tokens
FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
LEFT JOIN billing_usagerecord r
       ON r.organization_id = b.organization_id AND (b.team_id IS NULL OR r.team_id = b.team_id)
      AND (b.key_id IS NULL OR r.key_id = b.key_id)
      AND r.held_at >= w.starts_at AND r.held_at < coalesce(w.ends_at, 'infinity')
GROUP BY w.id ORDER BY w.id
"""


@dataclass
class Verdict:
    """One promise: over how many cases it was checked, and which broke it."""

    promise: str
    checked: int
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sign = "✗" if self.broken else "✓"
        cases = f": {'; '.join(self.broken[:SHOWN_MAX])}" if self.broken else ""
        return f"{sign} {self.promise:<68} {self.checked:>7} {len(self.broken):>6}{cases}"


@dataclass
class Talk:
    """What the upstream wrote down of one request."""

    ended: str = "killed"
    emitted: int = 0
    reported: int | None = None


class Books:
    """What is in the database at the end."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url, row_factory=dict_row) as connection:
            records = connection.execute("SELECT * FROM billing_usagerecord").fetchall()
            self.holds = connection.execute("SELECT * FROM billing_hold").fetchall()
            self.windows = connection.execute(WINDOWS).fetchall()
        self.usage: dict[str, list[Row]] = defaultdict(list)
        self.adjustments: dict[str, list[Row]] = defaultdict(list)
        for row in records:
            if row["kind"] == "usage":
                self.usage[str(row["request_id"])].append(row)
            else:
                self.adjustments[str(row["adjusts_id"])].append(row)

    def net(self, request_id: str) -> Row:
        """Return what the request comes to: its usage record and its adjustment together."""
        rows = self.usage[request_id] + self.adjustments.get(request_id, [])
        names = (
            "tokens_in_text",
            "tokens_in_image",
            "tokens_in_cached",
            "tokens_out",
            "amount_pico",
        )
        return rows[-1] | {name: sum(row[name] for row in rows) for name in names}


class Checker:
    """`verdicts` says of each promise how it was kept."""

    def __init__(
        self,
        clients: Iterable[Entry],
        upstream: Iterable[Entry],
        faults: Iterable[Entry],
        books: Books,
    ) -> None:
        entries = list(clients)
        self.gateways_killed_at = [
            each["at"] for each in faults if each["fault"].startswith("gateway")
        ]
        self.books = books
        self.completed = {each["id"]: each for each in entries if each["outcome"] == "completed"}
        self.answered = {
            each["id"]: each
            for each in entries
            if each["outcome"] in {"refused", "error"} and each["id"]
        }
        self.talks = _talks(upstream)

    def verdicts(self) -> list[Verdict]:
        books = self.books
        ids = books.usage.keys()
        rows = [row for rows in books.usage.values() for row in rows]
        return [
            self._each("every completed answer has a usage record", self.completed, self._lost),
            self._each(
                "… with exactly the usage that its client was shown",
                self.completed,
                self._wrong_usage,
            ),
            self._each("… and exactly what the upstream wrote", self.completed, self._wrong_output),
            self._each("no request is charged twice", ids, self._twice),
            self._each(
                "every amount is tokens × rates, by the policy of its ending",
                ids,
                self._wrong_amount,
            ),
            self._each("no amount passes what was held for it", ids, self._over_hold),
            self._each(
                "every request that reached the upstream was held or booked",
                self.talks,
                self._unheld,
            ),
            self._each(
                "no record of a request that never reached the upstream", ids, self._invented
            ),
            self._each("no more output is billed than the upstream wrote", ids, self._too_much),
            Verdict(
                "every hold has ended", len(rows), [str(row["request_id"]) for row in books.holds]
            ),
            Verdict(
                "every window's spent is what was booked in it",
                len(books.windows),
                list(self._unequal()),
            ),
        ]

    def estimates(self) -> tuple[int, int]:
        """Return how many records are estimates, and how many of those a late truth corrected."""
        rows = [row for rows in self.books.usage.values() for row in rows]
        return sum(row["status"] == "expired" for row in rows), len(self.books.adjustments)

    def _each(self, promise: str, ids: Iterable[str], look: Callable[[str], str | None]) -> Verdict:
        every = list(ids)
        return Verdict(promise, len(every), [f"{id} {said}" for id in every if (said := look(id))])

    def _lost(self, id: str) -> str | None:
        if id not in self.books.usage:
            return "is not in the ledger"
        is_estimate = self.books.usage[id][0]["status"] == "expired"
        is_lost = is_estimate and id not in self.books.adjustments
        return "was only estimated" if is_lost else None

    def _wrong_usage(self, id: str) -> str | None:
        entry = self.completed[id]
        shown = entry["usage"]
        if id not in self.books.usage or shown is None:
            return None
        if shown["image"] != entry["image"]:
            return f"has images of {entry['image']} tokens, shown {shown['image']}"
        row = self.books.net(id)
        prompt = row["tokens_in_text"] + row["tokens_in_image"] + row["tokens_in_cached"]
        booked = (prompt, row["tokens_in_cached"], row["tokens_out"])
        seen = (shown["prompt"], shown["cached"], shown["out"])
        return None if booked == seen else f"was shown {seen}, booked {booked}"

    def _wrong_output(self, id: str) -> str | None:
        if id not in self.books.usage:
            return None
        talk = self.talks.get(id, Talk())
        # An upstream that says nothing of usage is counted: its words, and the token that ended them.
        expected = talk.emitted + 1 if talk.reported is None else talk.reported
        booked = self.books.net(id)["tokens_out"]
        return None if booked == expected else f"wrote {expected} tokens, booked {booked}"

    def _twice(self, id: str) -> str | None:
        rows, late = self.books.usage[id], self.books.adjustments.get(id, [])
        if len(rows) > 1 or len(late) > 1:
            return f"has {len(rows)} records and {len(late)} adjustments"
        if late and rows[0]["status"] != "expired":
            return f"was {rows[0]['status']}, and adjusted"
        return None

    def _wrong_amount(self, id: str) -> str | None:
        first, net = self.books.usage[id][0], self.books.net(id)
        for row in (first, net):
            expected = _amount(row)
            if row["amount_pico"] not in expected:
                return f"costs {row['amount_pico']}, not {expected}"
        return None

    def _over_hold(self, id: str) -> str | None:
        net, held = self.books.net(id), self.books.usage[id][0]["held_pico"]
        return None if 0 <= net["amount_pico"] <= held else f"{net['amount_pico']} of {held}"

    def _unheld(self, id: str) -> str | None:
        if id in self.books.usage or self.talks[id].ended in {"refused", "broken"}:
            return None  # a backend that fails before it said anything costs nothing
        answer = self.answered.get(id)
        return f"is nowhere in the books ({answer['code'] if answer else 'no answer'})"

    def _invented(self, id: str) -> str | None:
        """A gateway that dies between hold and upstream leaves an estimate; one that lives leaves nothing."""
        row, answer = self.books.usage[id][0], self.answered.get(id)
        if id in self.talks or (row["status"] == "expired" and self._lost_its_gateway(row)):
            return None
        return f"was answered {answer and answer['code']}, and booked as {row['status']}"

    def _lost_its_gateway(self, row: Row) -> bool:
        """Tell whether a gateway was killed between the request and its estimate."""
        began, ended = row["received_at"].timestamp(), row["recorded_at"].timestamp()
        return any(began - 1 < at < ended for at in self.gateways_killed_at)

    def _too_much(self, id: str) -> str | None:
        talk = self.talks.get(id)
        out = self.books.net(id)["tokens_out"]
        most = talk.emitted + 1 if talk and talk.ended != "killed" else out
        return None if out <= most else f"{out} of {most}"

    def _unequal(self) -> Iterator[str]:
        for row in self.books.windows:
            for unit in ("pico", "tokens"):
                spent, held = row[f"spent_{unit}"], row[f"held_{unit}"]
                booked = row[f"opened_{unit}"] + row[f"booked_{unit}"]
                if spent != booked or held != 0 or spent < 0:
                    yield f"window {row['id']}: spent {spent} {unit}, booked {booked}, held {held}"


def _talks(upstream: Iterable[Entry]) -> dict[str, Talk]:
    talks: dict[str, Talk] = {}
    for entry in upstream:
        if entry["event"] == "started":
            talks[entry["id"]] = Talk()
        else:
            talks[entry["id"]] = Talk(entry["event"], entry["emitted"], entry["reported"])
    return talks


def _amount(row: Row) -> set[int]:
    """Return what a record may cost: one figure, or two where an estimate was voided later."""
    prompt = (
        row["tokens_in_text"] * RATES["text_in_micro"]
        + row["tokens_in_image"] * RATES["image_in_micro"]
        + row["tokens_in_cached"] * RATES["cached_in_micro"]
    )
    out = row["tokens_out"] * RATES["out_micro"]
    if not prompt + out:
        return {0}  # given back after it had been estimated
    return {
        {
            "": prompt + out + FEE_PICO,
            "delivered": prompt + out + FEE_PICO,
            "prompt": prompt + FEE_PICO,
            "nothing": 0,
        }[row["policy"]]
    }
