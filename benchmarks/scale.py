"""How rollups and drafts grow with the ledger: `python -m benchmarks.scale --records 1000000 5000000 10000000`.

Each size has a PostgreSQL of its own with a month of usage of 200 organizations (benchmarks/month.py), and a process of
its own that is measured (benchmarks/scaling.py), so that memory does not add up. Prints a table in markdown.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from demo.postgres import PostgreSQL

ORGANIZATIONS = 200
HEADINGS = (
    *("records", "loaded", "rollups of all", "rows", "… of a minute", "drafts of all", "longest"),
    *("memory here", "in PostgreSQL", "rollups read for a month", "records read for a day"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--organizations", type=int, default=ORGANIZATIONS)
    options = parser.parse_args()
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---" * len(HEADINGS) + "|", flush=True)
    for records in options.records:
        measure(records, options.organizations)


def measure(records: int, organizations: int) -> None:
    """Measure one size, which prints its row. CalledProcessError if anything is not as it should be."""
    with (
        tempfile.TemporaryDirectory(prefix="tessera-scale-") as directory,
        PostgreSQL(Path(directory), durable=False) as postgres,
    ):
        variables = {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": "redis://127.0.0.1:1",  # nobody asks it
            "TESSERA_SECRET_KEY": secrets.token_hex(),
            "TESSERA_KEY_PEPPER": secrets.token_hex(),
            "TESSERA_CREDENTIAL_KEYS": "YmVuY2htYXJrLWJlbmNobWFyay1iZW5jaG1hcmstISE=",
        }
        command = [sys.executable, "-m", "benchmarks.scaling", str(records), str(organizations)]
        subprocess.run(command, env=os.environ | variables, check=True)


if __name__ == "__main__":
    main()
