"""manage.py demo_seed: what the quick start has in its database.

Run at every start. It creates what is missing and otherwise keeps two things current: the demo
backend's address, whose port may change, and the admin's password. What a person has changed since
(a model repointed, disabled or repriced, a key revoked) stays as they left it.
"""

import json
from argparse import BooleanOptionalAction
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from billing.models import Price, PriceList
from billing.money import parse_micro
from gateway import base_url, console
from gateway.env import env_secret
from gateway.models import Backend, BackendKind, Model, Route
from tenants.console import NounCommand, actor
from tenants.models import ApiKey, Organization, Team

ADMIN = "admin"
DEMO = "demo"
TEAM = "vision"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the demo, with prices per million tokens of text, images, cached input, output."""

    name: str
    prices: dict[str, tuple[str, str, str, str]]
    counter: str = "llama-3.2-vision"
    context_tokens: int = 32_768
    tokens_out_default: int = 2048
    tokens_out_max: int = 8192
    images_max: int = 16
    backend_model: str = ""


TEXT_MODEL = DemoModel(
    name="smollm2-135m-instruct",
    prices={"TWD": ("1", "1", "0.5", "3"), "USD": ("0.03", "0.03", "0.015", "0.10")},
    counter="generic",
    context_tokens=2048,  # of each of the demo backend's slots (demo/llama_server.py)
    tokens_out_default=512,
    tokens_out_max=2048,
    images_max=0,
)
IMAGE_MODELS = (
    DemoModel(
        name="image-reader",
        prices={"TWD": ("5", "6", "2.5", "15"), "USD": ("0.16", "0.20", "0.08", "0.50")},
    ),
    # The API document's own model, so that its samples run as they are.
    DemoModel(
        name="llama3.2-ffm-11b-v-32k-chat",
        prices={"TWD": ("12.5", "15", "6", "40"), "USD": ("0.40", "0.48", "0.20", "1.25")},
        backend_model="image-reader",
    ),
)


class Command(NounCommand):
    help = (
        "Create what the quick start needs and lacks: organization, team, key, admin, backend, "
        "models and prices. Prints one JSON object, its `api_key` null unless it was minted now. "
        "The admin's password comes from TESSERA_ADMIN_PASSWORD."
    )

    requires_system_checks = []  # `migrate` has just made them; they take a second

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--backend-url", required=True, metavar="URL", help="the demo backend, without /v1"
        )
        parser.add_argument(
            "--text-model",
            action=BooleanOptionalAction,
            default=True,
            help=f"whether {TEXT_MODEL.name} runs here (default: yes); if not, it is not created",
        )
        parser.add_argument(
            "--new-key", action="store_true", help="revoke the demo key and mint another"
        )
        parser.set_defaults(act=self.seed)

    def seed(self, **options: Any) -> None:
        at = now()
        url = base_url.normalise(f"{options['backend_url'].rstrip('/')}/v1")
        models = (TEXT_MODEL, *IMAGE_MODELS) if options["text_model"] else IMAGE_MODELS
        with transaction.atomic():
            _keep_admin(_admin_password())
            backend = _keep_backend(url)
            for model in models:
                _keep_model(model, backend, at)
            team = _keep_team(_keep_organization())
            minted = _keep_key(team, at, anew=options["new_key"])
        self.stdout.write(json.dumps(_answer(team, minted, at), ensure_ascii=False))


def _admin_password() -> str:
    try:
        return env_secret("TESSERA_ADMIN_PASSWORD")
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


def _keep_admin(password: str) -> None:
    admin = User.objects.filter(username=ADMIN).first()
    if admin is None:
        User.objects.create_superuser(ADMIN, password=password)
    elif not admin.check_password(password):
        admin.set_password(password)
        admin.save(update_fields=["password"])


def _keep_backend(url: str) -> Backend:
    backend = Backend.objects.filter(name=DEMO).first()
    if backend is None:
        backend = Backend(name=DEMO, kind=BackendKind.LLAMA_CPP, base_url=url)
        console.create(backend)
    else:
        console.change(backend, base_url=url)
    return backend


def _keep_model(wanted: DemoModel, backend: Backend, at: datetime) -> None:
    """Create the model with its route, and the prices it lacks. One that exists is not touched."""
    if not Model.objects.filter(name=wanted.name).exists():
        model = Model(
            name=wanted.name,
            counter=wanted.counter,
            context_tokens=wanted.context_tokens,
            tokens_out_default=wanted.tokens_out_default,
            tokens_out_max=wanted.tokens_out_max,
            images_max=wanted.images_max,
        )
        console.create(model)
        console.create(Route(model=model, backend=backend, backend_model=wanted.backend_model))
    for currency, amounts in wanted.prices.items():
        if not Price.objects.filter(model_name=wanted.name, currency=currency).exists():
            console.create(_price(wanted.name, currency, amounts, at))


def _price(name: str, currency: str, amounts: tuple[str, str, str, str], at: datetime) -> Price:
    text_in, image_in, cached_in, out = map(parse_micro, amounts)
    return Price(
        price_list=PriceList.standard(currency),
        model_name=name,
        currency=currency,
        text_in_micro=text_in,
        image_in_micro=image_in,
        cached_in_micro=cached_in,
        out_micro=out,
        effective_from=at,
    )


def _keep_organization() -> Organization:
    organization = Organization.objects.filter(slug=DEMO).first()
    if organization is None:
        organization = Organization(slug=DEMO, name="Demo", timezone="Asia/Taipei", currency="TWD")
        console.create(organization)
    return organization


def _keep_team(organization: Organization) -> Team:
    team = organization.teams.filter(slug=TEAM).first()
    if team is None:
        team = Team(organization=organization, slug=TEAM, name="Vision")
        console.create(team)
    return team


def _keep_key(team: Team, at: datetime, *, anew: bool) -> str | None:
    """Mint the demo key if there never was one, or anew, and return it. A revoked one stays so."""
    demo_keys = list(team.keys.filter(name=DEMO, revoked_at__isnull=True)) if anew else []
    for key in demo_keys:
        key.revoke(by=actor(), at=at)
    if not anew and team.keys.filter(name=DEMO).exists():
        return None
    _, raw = ApiKey.mint(team, DEMO, by=actor(), at=at)
    return raw.secret


def _answer(team: Team, minted: str | None, at: datetime) -> dict[str, Any]:
    newest = team.keys.filter(name=DEMO).select_related("organization", "team").latest("created_at")
    return {
        "organization": team.organization.slug,
        "team": team.slug,
        "api_key": minted,
        "key_status": str(newest.status(at)),
        "admin_user": ADMIN,
    }
