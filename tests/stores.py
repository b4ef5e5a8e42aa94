"""A pytest plugin that starts PostgreSQL and Valkey for the tests before Django reads its settings.

They run in a temporary directory, unless TEST_DATABASE_URL and TEST_REDIS_URL are set, and stop with pytest. What a
run that was killed left is ended by the next. Loaded by `-p tests.stores` in pyproject.toml; hence run the tests as
`python -m pytest`.
"""

import os
from contextlib import ExitStack

from demo.postgres import PostgreSQL
from demo.valkey import Valkey
from tests import leftovers

SETTINGS = {
    "TESSERA_SECRET_KEY": "tests-only" * 5,
    "TESSERA_KEY_PEPPER": "tests-only" * 5,
    "TESSERA_CREDENTIAL_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
    "TESSERA_IMAGE_ALLOW_LOOPBACK": "1",
}

# Never DATABASE_URL itself: whoever runs the tests may have it set to something dear.
GIVEN = {"TEST_DATABASE_URL": "DATABASE_URL", "TEST_REDIS_URL": "REDIS_URL"}

_stores = ExitStack()


def start() -> None:
    os.environ.update(SETTINGS)
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # its controller has started them
    if GIVEN.keys() <= os.environ.keys():
        os.environ.update({name: os.environ[given] for given, name in GIVEN.items()})
        return
    directory = _stores.enter_context(leftovers.directory("tessera-tests-"))
    os.environ[leftovers.MARK] = str(directory)
    os.environ["DATABASE_URL"] = _stores.enter_context(PostgreSQL(directory, durable=False)).url
    os.environ["REDIS_URL"] = _stores.enter_context(Valkey(directory)).url


def pytest_unconfigure() -> None:
    _stores.close()


start()
