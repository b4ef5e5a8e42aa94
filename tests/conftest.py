"""The cast and the running door; `tests.stores` has started PostgreSQL and Valkey before.

Each pytest worker has a database of its own and, for tests that ask for it, one gateway process with a fake
backend at its far side. Rows that the gateway must see are committed, so each such test makes its own
organization; nothing is ever truncated, as the ledger would refuse.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.test.utils import setup_databases, teardown_databases

pytest_plugins = ["tests.cast", "tests.door"]


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_modify_db_settings: None, django_db_blocker: Any
) -> Iterator[None]:
    """Make this worker's database, for tests with a `db` mark and for those that commit alike."""
    with django_db_blocker.unblock():
        databases = setup_databases(verbosity=0, interactive=False)
    yield
    with django_db_blocker.unblock():
        teardown_databases(databases, verbosity=0)


@pytest.fixture
def committed(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Let the test write rows that other processes see. They stay: make your own organization."""
    with django_db_blocker.unblock():
        yield
