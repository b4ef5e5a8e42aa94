"""One organization with a key, and a priced model for each kind of work."""

from datetime import UTC, datetime

from benchmarks import work
from benchmarks.backend import HOST
from benchmarks.work import Work
from billing.models import Price
from gateway.models import Backend, Model, Route
from tenants.models import ApiKey, Organization, Team

CURRENCY = "TWD"
SINCE = datetime(2020, 1, 1, tzinfo=UTC)


def lay_out(backend_port: int) -> str:
    """Fill an empty database, and return the key. Run by the stage in `manage.py shell`."""
    for each in work.everything():
        _add_model(each, f"http://{HOST}:{backend_port}/{each.model}")
    return _new_key()


def _add_model(each: Work, base_url: str) -> None:
    backend = Backend(name=each.model, base_url=base_url)
    backend.set_credential("benchmark")
    backend.save()
    model = Model.objects.create(name=each.model, counter="llama-3.2-vision")
    upstream = work.UPSTREAM_NAME if each.is_renamed else ""
    Route.objects.create(model=model, backend=backend, backend_model=upstream)
    Price.objects.create(
        model_name=each.model,
        currency=CURRENCY,
        text_in_micro=work.TEXT_IN_MICRO,
        image_in_micro=work.IMAGE_IN_MICRO,
        cached_in_micro=work.TEXT_IN_MICRO,
        out_micro=work.OUT_MICRO,
        effective_from=SINCE,
    )


def _new_key() -> str:
    organization = Organization.objects.create(name="Bench", slug="bench", currency=CURRENCY)
    team = Team.objects.create(organization=organization, name="Bench", slug="bench")
    _, raw = ApiKey.mint(team=team, name="bench", by=None, at=datetime.now(UTC))
    return raw.secret
