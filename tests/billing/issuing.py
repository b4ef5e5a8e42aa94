"""Workers that issue invoices, to be run many at once and to be killed: `python -m tests.billing.issuing`.

For each line on its standard input, a moment, seeds, and ids of organizations, it forks a worker for each seed, which
takes every step that is due for them. It says their process ids, and then how each ended: 0, or minus the signal.
Each takes them in an order of its own. With a seed above 0 a worker rolls every fifth step back, and tries again.
"""

import os
import random
import sys
from datetime import datetime

import django

django.setup()

from django.db import transaction  # noqa: E402

from billing import rollups  # noqa: E402 - needs the models
from billing.invoicing import documents, lifecycle  # noqa: E402

ROLLED_BACK_SHARE = 0.2


def main() -> None:
    for line in sys.stdin:
        at, seeds, organizations = (part.split(",") for part in line.split())
        pids = []
        for seed in seeds:
            pid = os.fork()  # nothing has a connection yet
            if not pid:
                _work(datetime.fromisoformat(at[0]), int(seed), list(map(int, organizations)))
            pids.append(pid)
            _say(pid)
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            _say(os.waitstatus_to_exitcode(status))


def _work(at: datetime, seed: int, organizations: list[int]) -> None:
    chance = random.Random(seed)
    chance.shuffle(organizations)
    rollups.recompute()
    for organization_id in organizations:
        while seed > 0 and chance.random() < ROLLED_BACK_SHARE:
            with transaction.atomic():
                lifecycle.advance(organization_id, at)
                transaction.set_rollback(True)
        for invoice in lifecycle.advance(organization_id, at):
            documents.document(invoice)
    os._exit(0)


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
