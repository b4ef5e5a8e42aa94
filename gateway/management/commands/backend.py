"""manage.py backend add | list | set | remove | check"""

from argparse import BooleanOptionalAction
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import transaction

from gateway import base_url, console, probe
from gateway.models import Backend, BackendKind, Model, Route
from tenants.console import LIST_MAX, NounCommand, Row

TIMEOUTS = {
    "connect_timeout_s": "until it is connected",
    "first_byte_timeout_s": "until the answer begins; without streaming the whole generation",
    "chunk_timeout_s": "between two pieces of a stream",
    "total_timeout_s": "for the whole request",
}
WORDS = {"base_url": "url", "credential_encrypted": "credential", "is_active": "active"}


class Command(NounCommand):
    help = (
        "Backends: the servers that run models. Add one, and with --model repoint models to it in "
        "the same step. A credential is read from the environment or a file, and never shown."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        adding = verbs.add_parser("add", help="add a backend, and let it answer for models")
        adding.add_argument("name", metavar="NAME", help="letters, digits, hyphens, underscores")
        adding.add_argument("--url", required=True, help="up to and without /chat/completions")
        _add_settings(adding, kind=BackendKind.OPENAI)
        adding.add_argument(
            "--model",
            action="extend",
            nargs="+",
            default=[],
            metavar="NAME",
            help="a model that from now on only this backend answers for",
        )
        adding.add_argument(
            "--backend-model", default="", metavar="NAME", help="its name there (default: the same)"
        )
        adding.set_defaults(act=self.add)

        listing = verbs.add_parser("list", help="list the backends and what they answer for")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        setting = verbs.add_parser("set", help="change what is given, and nothing else")
        setting.add_argument("name", metavar="NAME")
        setting.add_argument("--url", help="up to and without /chat/completions")
        _add_settings(setting, kind=None)
        setting.add_argument(
            "--no-credential", action="store_true", help="forget the credential, send none"
        )
        setting.add_argument(
            "--active", action=BooleanOptionalAction, help="whether requests are sent to it"
        )
        setting.set_defaults(act=self.set)

        removing = verbs.add_parser("remove", help="remove a backend that no route uses")
        removing.add_argument("name", metavar="NAME")
        removing.set_defaults(act=self.remove)

        checking = verbs.add_parser("check", help="ask a backend which models it offers")
        checking.add_argument("name", metavar="NAME")
        checking.add_argument(
            "--timeout-s", type=int, default=probe.TIMEOUT_S, help="(default: %(default)s)"
        )
        checking.set_defaults(act=self.check_models)

    def add(self, **options: Any) -> None:
        name = options["name"]
        if Backend.objects.filter(name=name).exists():
            raise CommandError(
                f"There is a backend {name!r} already: backend set {name} changes it."
            )
        if options["backend_model"] and not options["model"]:
            raise CommandError("--backend-model says what a --model is called there; give --model.")
        routed = [console.find_model(each) for each in dict.fromkeys(options["model"])]
        backend = Backend(name=name, **_values(options))
        with transaction.atomic():
            console.create(backend)
            displaced = {
                model: console.repoint(model, backend, backend_model=options["backend_model"])
                for model in routed
            }
        self.tell(f"Added the backend {backend} at {backend.base_url}.")
        for model, routes in displaced.items():
            self._tell_of(model, routes)
        if not routed:
            self.tell(f"No model is routed to it yet: model route MODEL --backend {backend}")

    def list(self, **options: Any) -> None:
        backends = Backend.objects.prefetch_related("routes__model")
        self.show(
            [_row(backend, as_json=options["json"]) for backend in self.first(backends)],
            as_json=options["json"],
            columns=["name", "status", "kind", "url", "credential", "models"],
        )

    def set(self, **options: Any) -> None:
        backend = console.find_backend(options["name"])
        values = _values(options)
        if options["no_credential"]:
            if values.get("credential_encrypted"):
                raise CommandError("Give a credential or --no-credential, not both.")
            values["credential_encrypted"] = b""
        if options["active"] is not None:
            values["is_active"] = options["active"]
        if not values:
            raise CommandError(f"{backend} is as it was: say what to change (backend set --help).")
        changed = console.change(backend, **values)
        self.tell(f"{backend}: {console.describe_changes(map(_word, changed))}.")

    def remove(self, **options: Any) -> None:
        backend = console.find_backend(options["name"])
        models = _models(backend.routes.select_related("model")[:LIST_MAX])
        if models:
            raise CommandError(
                f"{backend} has routes from {', '.join(models)}. "
                f"Remove each first: model unroute MODEL --backend {backend}"
            )
        console.remove(backend)
        self.tell(f"Removed the backend {backend}.")

    def check_models(self, **options: Any) -> None:
        backend = console.find_backend(options["name"])
        try:
            offer = probe.models_offered(
                backend.base_url,
                console.credential_of(backend),
                timeout_s=max(1, options["timeout_s"]),
            )
        except probe.ProbeFailed as failure:
            raise CommandError(f"{backend} at {backend.base_url}: {failure}") from failure
        self.tell(f"{backend} answered in {offer.took_ms} ms. Its models: {len(offer.models)}")
        for name in offer.models:
            self.stdout.write(name)
        for route in backend.routes.select_related("model")[:LIST_MAX]:
            wanted = route.backend_model or route.model.name
            if wanted not in offer.models:
                self.tell(f"Not among them: {wanted}, which the model {route.model} is routed to.")

    def _tell_of(self, model: Model, displaced: Iterable[Route]) -> None:
        self.tell(f"{model} is answered by it now. Its price and its counter stay as they are.")
        for route in displaced:
            self.tell(f"{model} is no longer answered by {route.backend}: that route is off.")
        if not model.is_active:
            self.tell(f"{model} is disabled: model enable {model}")


def _add_settings(parser: CommandParser, *, kind: BackendKind | None) -> None:
    parser.add_argument("--kind", choices=BackendKind.values, default=kind)
    console.add_credential_arguments(parser)
    for field, meaning in TIMEOUTS.items():
        option = f"--{field.replace('_', '-')}"
        parser.add_argument(option, type=int, metavar="SECONDS", help=meaning)


def _values(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the options give, as the backend keeps them."""
    given = {name: options[name] for name in ("kind", *TIMEOUTS) if options[name] is not None}
    if options["url"] is not None:
        given["base_url"] = base_url.normalise(options["url"])
    secret = console.read_credential(options)
    if secret is not None:
        given["credential_encrypted"] = console.encrypt(secret)
    return given


def _word(field: str) -> str:
    """Return what the options call a field."""
    return WORDS.get(field, field)


def _models(routes: Iterable[Route]) -> list[str]:
    return [str(route.model) if route.is_active else f"{route.model} (off)" for route in routes]


def _row(backend: Backend, *, as_json: bool) -> Row:
    models = _models(backend.routes.all())
    row: Row = {
        "name": backend.name,
        "status": "active" if backend.is_active else "off",
        "kind": backend.kind,
        "url": backend.base_url,
        "credential": "stored" if backend.has_credential else None,
        "models": models if as_json else ",".join(models) or None,
    }
    timeouts = {field: getattr(backend, field) for field in TIMEOUTS}
    return row | timeouts if as_json else row
