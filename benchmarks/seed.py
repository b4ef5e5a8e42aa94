"""Migrate an empty database and lay out what the benchmark needs: priced models, and a key.

Run by the stage as a process of its own: `python -m benchmarks.seed BACKEND_PORT full` prints the key. `full` puts
budgets in money and tokens and limits of every kind over its organization, its team and itself; `bare` does not.
"""

import os
import sys
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

import django

django.setup()

# Models can be imported only now.
from django.core.management import call_command  # noqa: E402

from benchmarks import work  # noqa: E402
from benchmarks.backend import HOST  # noqa: E402
from benchmarks.work import Work  # noqa: E402
from billing.models import Budget, Price, PriceList  # noqa: E402
from gateway.models import Backend, Model, Route  # noqa: E402
from tenants.limits import Limit, LimitKind  # noqa: E402
from tenants.models import ApiKey, Organization, Team  # noqa: E402

CURRENCY = "TWD"
FULL = "full"
PLENTY = 10**9  # of units of currency, tokens, requests and images: nothing is refused
SINCE = datetime(2020, 1, 1, tzinfo=UTC)


def main() -> None:
    call_command("migrate", verbosity=0)
    for each in work.everything():
        _add_model(each, f"http://{HOST}:{sys.argv[1]}/{each.model}")
    print(_new_key(is_watched=sys.argv[2] == FULL))


def _add_model(each: Work, base_url: str) -> None:
    backend = Backend(name=each.model, base_url=base_url)
    backend.set_credential("benchmark")
    backend.save()
    model = Model.objects.create(name=each.model, counter="llama-3.2-vision")
    upstream = work.UPSTREAM_NAME if each.is_renamed else ""
    Route.objects.create(model=model, backend=backend, backend_model=upstream)
    Price.objects.create(
        price_list=PriceList.standard(CURRENCY),
        model_name=each.model,
        currency=CURRENCY,
        text_in_micro=work.TEXT_IN_MICRO,
        image_in_micro=work.IMAGE_IN_MICRO,
        cached_in_micro=work.TEXT_IN_MICRO,
        out_micro=work.OUT_MICRO,
        effective_from=SINCE,
    )


def _new_key(*, is_watched: bool) -> str:
    organization = Organization.objects.create(name="Bench", slug="bench", currency=CURRENCY)
    team = Team.objects.create(organization=organization, name="Bench", slug="bench")
    key, raw = ApiKey.mint(team=team, name="bench", by=None, at=datetime.now(UTC))
    if is_watched:
        owner: dict[str, Any] = {"organization": organization}
        for more in ({}, {"team": team}, {"key": key}):
            owner |= more
            _watch(**owner)
    return raw.secret


def _watch(**owner: Any) -> None:
    Budget.objects.create(**owner, limit_micro=PLENTY * 10**6, limit_tokens=PLENTY)
    for kind in LimitKind:
        Limit.objects.create(**owner, kind=kind, maximum=PLENTY)


if __name__ == "__main__":
    main()
