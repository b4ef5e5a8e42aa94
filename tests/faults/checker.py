"""The checker: the clients' journal, the upstream's journal and the books, held against each other.

It shares no code with what it checks: the rates are the scenario's, the arithmetic is its own, and a budget's
window is added up from who owns the row and when it was held, not from the window that the row names.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.faults.journal import Entry
from tests.faults.killer import FROZEN_S
from tests.faults.scenario import RATES, TEXT_TOKENS, TILE_TOKENS, Caller

Row = dict[str, Any]
SHOWN_MAX = 5
# Valkey's count, the shares of the processes that live while it is away, and of those that were just killed.
COUNTS_OF_A_LIMIT = 3
# What a client sees of an answer that did not begin in time: an error, or nothing before its own patience ended.
SILENCE = {"backend_timeout", "upstream_timeout", "no answer"}
LEFT = "its client left before it heard an id"
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

    began_at: float = 0.0
    pictures: int = 0
    ended_at: float = inf
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
        callers: Iterable[Caller],
    ) -> None:
        entries = list(clients)
        struck = [(each["fault"], each["at"]) for each in faults]
        self.gateways_hit_at = [at for fault, at in struck if fault.startswith("gateway")]
        self.frozen_at = [at for fault, at in struck if fault == "gateway worker frozen"]
        self.books = books
        self.completed = {each["id"]: each for each in entries if each["outcome"] == "completed"}
        self.answered = {
            each["id"]: each
            for each in entries
            if each["outcome"] in {"refused", "error"} and each["id"]
        }
        self.seen = {each["id"]: each.get("code") or each["outcome"] for each in entries}
        self.talks = _talks(upstream)
        self.callers = {caller.key_id: caller for caller in callers}
        self.keys = {each["id"]: each["key"] for each in entries if each["id"]}
        self.keys |= {id: rows[0]["key_id"] for id, rows in books.usage.items()}

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
            self._each("the input billed is what the upstream was sent", ids, self._wrong_input),
            self._each(
                "each ending is billed by its organization's policy", ids, self._wrong_policy
            ),
            self._each(
                "every amount is tokens × rates, by that policy",
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
            Verdict(
                "no key runs more at once than its limit, counted in three places",
                sum(caller.at_once_max is not None for caller in self.callers.values()),
                list(self._crowded()),
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
        status = self.books.net(id)["status"]
        return None if status in {"ok", "cut"} else f"is booked as {status}"

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

    def _wrong_input(self, id: str) -> str | None:
        row = self.books.net(id)
        prompt = row["tokens_in_text"] + row["tokens_in_image"] + row["tokens_in_cached"]
        if not prompt or id not in self.talks:
            return None
        image = self.talks[id].pictures * TILE_TOKENS
        is_right = prompt - image in TEXT_TOKENS and row["tokens_in_image"] <= image
        return None if is_right else f"has images of {image} tokens, billed {prompt} in all"

    def _wrong_policy(self, id: str) -> str | None:
        shares = self.callers[self.keys[id]].shares
        first, last = self.books.usage[id][0], self.books.net(id)
        for row in (first, last):
            expected = shares.get(row["status"], "")
            if row["policy"] != expected and not _is_nothing(row):
                return f"is {row['status']} and billed as {row['policy']!r}, not {expected!r}"
        return None

    def _wrong_amount(self, id: str) -> str | None:
        first, net = self.books.usage[id][0], self.books.net(id)
        for row in (first, net):
            expected = _amount(row)
            if row["amount_pico"] != expected:
                return f"costs {row['amount_pico']}, not {expected}"
        return None

    def _over_hold(self, id: str) -> str | None:
        net, held = self.books.net(id), self.books.usage[id][0]["held_pico"]
        return None if 0 <= net["amount_pico"] <= held else f"{net['amount_pico']} of {held}"

    def _unheld(self, id: str) -> str | None:
        if id in self.books.usage or self.talks[id].ended in {"refused", "broken"}:
            return None  # a backend that fails before it said anything costs nothing
        seen = self.seen.get(id, LEFT)
        if seen in {*SILENCE, LEFT} and self._was_frozen(self.talks[id]):
            return None  # nor does one that seemed silent, as its gateway was stopped all the while
        return f"is nowhere in the books ({seen})"

    def _invented(self, id: str) -> str | None:
        """A gateway that dies between hold and upstream leaves an estimate; one that lives leaves nothing."""
        row, answer = self.books.usage[id][0], self.answered.get(id)
        if id in self.talks or (row["status"] == "expired" and self._lost_its_gateway(row)):
            return None
        return f"was answered {answer and answer['code']}, and booked as {row['status']}"

    def _lost_its_gateway(self, row: Row) -> bool:
        """Tell whether a gateway was killed or stopped between the request and its estimate."""
        began, ended = row["received_at"].timestamp(), row["recorded_at"].timestamp()
        return any(began - 1 < at < ended for at in self.gateways_hit_at)

    def _was_frozen(self, talk: Talk) -> bool:
        return any(
            at - 1 < talk.ended_at and talk.began_at < at + FROZEN_S[1] for at in self.frozen_at
        )

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

    def _crowded(self) -> Iterator[str]:
        """Count, from the upstream's journal, what each limited key had running at its fullest moment."""
        moments: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for id, talk in self.talks.items():
            if id in self.keys:
                moments[self.keys[id]] += [(talk.began_at, 1), (talk.ended_at, -1)]
        for key, changes in moments.items():
            limit = self.callers[key].at_once_max
            most = max(accumulate(step for _, step in sorted(changes)))
            if limit is not None and most > limit * COUNTS_OF_A_LIMIT:
                yield f"key {key} ran {most} at once, its limit is {limit}"


def _talks(upstream: Iterable[Entry]) -> dict[str, Talk]:
    talks: dict[str, Talk] = {}
    for entry in upstream:
        if entry["event"] == "started":
            talks[entry["id"]] = Talk(entry["at"], entry["pictures"])
        else:
            talk = talks[entry["id"]]
            talk.ended, talk.ended_at = entry["event"], entry["at"]
            talk.emitted, talk.reported = entry["emitted"], entry["reported"]
    return talks


def _is_nothing(row: Row) -> bool:
    """Tell whether all of an estimate was given back."""
    return not (row["tokens_in_text"] or row["tokens_in_image"] or row["tokens_in_cached"])


def _amount(row: Row) -> int:
    """Return what a record costs, an estimate and its adjustment together."""
    prompt = (
        row["tokens_in_text"] * RATES["text_in_micro"]
        + row["tokens_in_image"] * RATES["image_in_micro"]
        + row["tokens_in_cached"] * RATES["cached_in_micro"]
    )
    out = row["tokens_out"] * RATES["out_micro"]
    if _is_nothing(row):
        return 0
    by_policy: dict[str, int] = {
        "delivered": prompt + out + FEE_PICO,
        "prompt": prompt + FEE_PICO,
        "nothing": 0,
    }
    return by_policy[row["policy"] or "delivered"]
