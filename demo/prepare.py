"""Bring database and page files up to date: `python -m demo.prepare --backend-url URL`.

Three management commands in one process, because loading Django takes longer than any of them.
"""

import argparse
import os

import django
from django.core.management import call_command

from demo import text_model


def main() -> None:
    """Run the commands and print what demo_seed prints, a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m demo.prepare")
    parser.add_argument("--backend-url", required=True)
    parser.add_argument("--new-key", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    call_command("collectstatic", interactive=False, verbosity=0)
    call_command("migrate", interactive=False, verbosity=0)
    call_command(
        "demo_seed",
        *("--backend-url", options.backend_url),
        "--no-text-model" if text_model.why_not_here() else "--text-model",
        *(["--new-key"] if options.new_key else []),
    )


if __name__ == "__main__":
    main()
