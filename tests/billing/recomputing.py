"""Workers that recompute the rollups, to be killed: `python -m tests.billing.recomputing`.

For each line on its standard input it forks one, says its process id, and then how it ended: 0, or minus the signal.
"""

import os
import sys

import django

django.setup()

from billing import rollups  # noqa: E402 - needs the models


def main() -> None:
    for _ in sys.stdin:
        pid = os.fork()  # nothing has a connection yet
        if not pid:
            rollups.recompute(everything=True)
            os._exit(0)
        _say(pid)
        _, status = os.waitpid(pid, 0)
        _say(os.waitstatus_to_exitcode(status))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
