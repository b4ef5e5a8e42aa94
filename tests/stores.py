"""A pytest plugin that starts PostgreSQL and Valkey for the tests before Django reads its settings.

They run in a temporary directory, unless DATABASE_URL and REDIS_URL point elsewhere, and stop with pytest.
Loaded by `-p tests.stores` in pyproject.toml; hence run the tests as `python -m pytest`.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from demo.postgres import PostgreSQL
from demo.valkey import Valkey

SETTINGS = {
    "TESSERA_SECRET_KEY": "tests-only",
    "TESSERA_KEY_PEPPER": "tests-only",
    "TESSERA_CREDENTIAL_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
    "TESSERA_IMAGE_ALLOW_LOOPBACK": "1",
}

_stores = ExitStack()


def start() -> None:
    os.environ.update(SETTINGS)
    if "PYTEST_XDIST_WORKER" in os.environ or {"DATABASE_URL", "REDIS_URL"} <= os.environ.keys():
        return
    directory = Path(tempfile.mkdtemp(prefix="tessera-tests-"))
    _stores.callback(shutil.rmtree, directory, ignore_errors=True)
    os.environ["DATABASE_URL"] = _stores.enter_context(PostgreSQL(directory, durable=False)).url
    os.environ["REDIS_URL"] = _stores.enter_context(Valkey(directory)).url


def pytest_unconfigure() -> None:
    _stores.close()


start()
