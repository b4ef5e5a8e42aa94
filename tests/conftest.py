"""The cast and the running door; `tests.stores` has started PostgreSQL and Valkey before.

Each pytest worker has a database of its own and, for tests that ask for it, one gateway process with a fake
backend at its far side. Rows that the gateway must see are committed, so each such test makes its own
organization; nothing is ever truncated, as the ledger would refuse.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.test.utils import setup_databases, teardown_databases

import gateway.celery  # noqa: F401  tests run tasks as the worker does, which alone has this application

OUR_APPS = ("tenants", "billing", "gateway")

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


KEPT = {"Revision", "GatewayProcess"}  # a door in the same database writes its own


@pytest.fixture
def empty_database(db: None) -> None:
    """Hide the rows that other tests committed: they are deleted in this test's own transaction."""
    ours = [app.get_models() for app in apps.get_app_configs() if app.name in OUR_APPS]
    with connection.cursor() as cursor:
        cursor.execute(
            "SET LOCAL session_replication_role = replica"
        )  # no triggers, no foreign keys
        for model in itertools.chain.from_iterable(ours):
            if model.__name__ not in KEPT:
                cursor.execute(f'DELETE FROM "{model._meta.db_table}"')
        cursor.execute("SET LOCAL session_replication_role = origin")
