"""Workers that recompute the rollups, to be killed: `python -m tests.billing.recomputing`.

For each line on its standard input it forks one, and says its process id. One that is done waits to be killed.
"""

import os
import signal
import sys

import django

django.setup()

from billing import rollups  # noqa: E402 - needs the models


def main() -> None:
    rollups.BUCKETS_AT_ONCE_MAX = 8  # many transactions, so that there is much to interrupt
    for _ in sys.stdin:
        pid = os.fork()  # nothing has a connection yet
        if not pid:
            rollups.recompute(everything=True)
            signal.pause()
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
