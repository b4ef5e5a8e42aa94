from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Price
from tests import factories
from tests.factories import Tenant
from tests.receiver import Receiver, receiving


@pytest.fixture
def acme(db: None) -> Tenant:
    return factories.tenant("acme", timezone="Asia/Taipei")


@pytest.fixture
def vlm(db: None) -> Price:
    return factories.price("vlm")


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    """A webhook's receiver on this machine, which the settings allow."""
    settings.WEBHOOK_ALLOW_PRIVATE = True
    with receiving() as receiver:
        yield receiver
