"""`python -m tests.faults --seed N --seconds 240`. Exits with 1 if a promise was broken, and keeps the journals."""

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.runner import run

SEED_BITS = 24


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--seconds", type=int, default=240, help="how long faults go on")
    parser.add_argument("--clients", type=int, default=120, help="how many ask at once")
    parser.add_argument("--keep", action="store_true", help="keep journals and logs")
    options = parser.parse_args()
    seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
    var = Path(tempfile.mkdtemp(prefix="tessera-faults-"))
    _say(f"seed {seed}: {options.seconds} s of faults under {options.clients} clients, in {var}")
    began = time.monotonic()
    try:
        report = run(var, seed=seed, seconds=options.seconds, clients=options.clients)
        _say(str(report))
        is_clean = report.is_clean
    except BaseException:
        _say(f"seed {seed}: the run itself failed; its logs are in {var}")
        raise
    _say(f"seed {seed}: {'clean' if is_clean else 'BROKEN'} after {time.monotonic() - began:.0f} s")
    if is_clean and not options.keep:
        shutil.rmtree(var, ignore_errors=True)
    return 0 if is_clean else 1


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
