"""Management commands as a person runs them."""

import json
from io import StringIO
from typing import Any

from django.core.management import call_command


def run(*words: str) -> tuple[str, str]:
    """Run a command; return what it printed on stdout and on stderr."""
    out, err = StringIO(), StringIO()
    call_command(*words, stdout=out, stderr=err, no_color=True)
    return out.getvalue(), err.getvalue()


def run_json(*words: str) -> Any:
    return json.loads(run(*words, "--json")[0])
