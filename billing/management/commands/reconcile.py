"""manage.py reconcile"""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from billing import reconciliation
from billing.reconciliation import Report
from tenants import console


class Command(console.NounCommand):
    help = (
        "Book what dead gateway processes left on this disk, settle their holds, and compare every open "
        "budget window with the ledger and the holds. Safe at any time, any number of times."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--fix",
            action="store_true",
            help="set windows that drifted to what their rows add up to",
        )
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(act=self.reconcile)

    def reconcile(self, *, fix: bool, json: bool, **_: Any) -> None:
        report = reconciliation.run(fix=fix, by=console.actor())
        if json:
            self._show_json(report)
        else:
            self._say(report)

    def _show_json(self, report: Report) -> None:
        totals = {"drift_pico": report.drift_pico, "drift_tokens": report.drift_tokens}
        self.stdout.write(json.dumps({**asdict(report), **totals}, indent=2))

    def _say(self, report: Report) -> None:
        self.stdout.write(f"{report.drained} rows booked from spools, {report.refused} refused.")
        self.stdout.write(f"{report.reaped} holds of dead processes settled.")
        self.stdout.write(f"{report.rollups} rollups recomputed.")
        for drift in report.drifts:
            self.stdout.write(
                f"budget {drift.budget_id}, window {drift.window_id}: "
                f"off by {drift.pico} pico-units and {drift.tokens} tokens"
            )
        if not report.drifts:
            self.stdout.write("No drift: every window is what its rows add up to.")
        elif report.fixed:
            self.stdout.write(f"{report.fixed} windows corrected.")
        else:
            self.tell("Nothing was corrected: manage.py reconcile --fix")
