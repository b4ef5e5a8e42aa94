"""`python -m tests.faults --seed N --seconds 200`. Exits with 1 if a promise was broken, and keeps the journals."""

import argparse
import secrets
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests import leftovers
from tests.faults.runner import run
from tests.faults.warden import warden

SEED_BITS = 24
PREFIX = "tessera-faults-"
KEPT_PREFIX = "tessera-kept-"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--seconds", type=int, default=200, help="how long faults go on")
    parser.add_argument("--short", action="store_true", help="each brief fault once, instead")
    parser.add_argument("--clients", type=int, default=120, help="how many ask at once")
    parser.add_argument("--keep", action="store_true", help="keep journals and logs")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
    with ExitStack() as stack:
        var = stack.enter_context(leftovers.directory(PREFIX))
        stack.enter_context(warden(var))
        return _run(var, seed, options)


def _run(var: Path, seed: int, options: argparse.Namespace) -> int:
    how_long = "a short round" if options.short else f"{options.seconds} s"
    _say(f"seed {seed}: {how_long} of faults under {options.clients} clients, in {var}")
    began = time.monotonic()
    is_clean = False
    try:
        report = run(
            var,
            seed=seed,
            seconds=0 if options.short else options.seconds,
            clients=options.clients,
        )
        _say(str(report))
        is_clean = report.is_clean
    except BaseException:
        _say(f"seed {seed}: the run itself failed")
        raise
    finally:
        if options.keep or not is_clean:
            _say(f"journals and logs are kept in {_keep(var)}")
    _say(f"seed {seed}: {'clean' if is_clean else 'BROKEN'} after {time.monotonic() - began:.0f} s")
    return 0 if is_clean else 1


def _keep(var: Path) -> Path:
    """Put what a person may want to read where no later run sweeps it away."""
    kept = var.with_name(var.name.replace(PREFIX, KEPT_PREFIX))
    kept.mkdir()
    for each in (*var.glob("*.jsonl"), *var.glob("log"), *var.glob("spool")):
        each.rename(kept / each.name)
    return kept


def _interrupt(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
