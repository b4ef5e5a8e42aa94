"""manage.py model add | list | set | route | unroute | disable | enable"""

from collections import defaultdict
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.db.models import Prefetch
from django.utils.timezone import now

from billing.models import Price
from gateway import console
from gateway.counting import counters
from gateway.models import Model, Route
from tenants.console import NounCommand, Row

NUMBERS = {
    "--context": ("context_tokens", "tokens that prompt and answer have together"),
    "--out-default": ("tokens_out_default", "max_tokens where the client gives none"),
    "--out-max": ("tokens_out_max", "the most that a client may ask for"),
    "--images-max": ("images_max", "images in one request; 0 for a model that reads text only"),
}
NO_PRICE = "no price: refused"
NO_BACKEND = "no backend: refused"


class Command(NounCommand):
    help = (
        "Models by their public names: what they hold, how they are counted, and which backend "
        "answers for each. Prices are the command `price`'s."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        adding = verbs.add_parser("add", help="add a model")
        adding.add_argument("name", metavar="NAME", help="what clients call it")
        _add_settings(adding, counter_required=True)
        adding.set_defaults(act=self.add)

        listing = verbs.add_parser("list", help="list the models, their backends and prices")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        setting = verbs.add_parser("set", help="change what is given, and nothing else")
        setting.add_argument("name", metavar="NAME")
        _add_settings(setting, counter_required=False)
        setting.set_defaults(act=self.set)

        routing = verbs.add_parser("route", help="let a backend answer for the model")
        _add_route(routing)
        routing.add_argument(
            "--backend-model", metavar="NAME", help="its name there (default: the same)"
        )
        routing.add_argument(
            "--priority", type=int, metavar="N", help="the lowest number answers (default: 10)"
        )
        routing.add_argument(
            "--only", action="store_true", help="before its other routes, which are turned off"
        )
        routing.set_defaults(act=self.route)

        unrouting = verbs.add_parser("unroute", help="remove the route to a backend")
        _add_route(unrouting)
        unrouting.set_defaults(act=self.unroute)

        for verb, is_active, meaning in (
            ("disable", False, "hide it and refuse requests for it"),
            ("enable", True, "serve it again"),
        ):
            switching = verbs.add_parser(verb, help=meaning)
            switching.add_argument("name", metavar="NAME")
            switching.set_defaults(act=self.switch, is_active=is_active)

    def add(self, **options: Any) -> None:
        model = Model(name=options["name"], **_values(options))
        console.create(model)
        self.tell(f"Added the model {model}. Requests for it are refused until it has both:")
        self.tell(f"  a backend  model route {model} --backend NAME")
        self.tell(f"  a price    price set {model} --currency TWD --text-in … --image-in … --out …")

    def list(self, **options: Any) -> None:
        best_first = Route.objects.select_related("backend").order_by("priority", "id")
        models = Model.objects.prefetch_related(Prefetch("routes", best_first))
        priced = _currencies_by_model()
        self.show(
            [
                _row(model, priced.get(model.name, []), as_json=options["json"])
                for model in self.first(models)
            ],
            as_json=options["json"],
            columns=[
                *("name", "status", "counter"),
                *("context", "out_default", "out_max", "images_max"),
                *("backends", "price"),
            ],
        )

    def set(self, **options: Any) -> None:
        model = console.find_model(options["name"])
        values = _values(options)
        if not values:
            raise CommandError(f"{model} is as it was: say what to change (model set --help).")
        changed = console.change(model, **values)
        self.tell(f"{model}: {console.describe_changes(changed)}.")

    def route(self, **options: Any) -> None:
        model = console.find_model(options["name"])
        backend = console.find_backend(options["backend"])
        names = ("backend_model", "priority")
        values = {name: options[name] for name in names if options[name] is not None}
        put = console.repoint if options["only"] else console.set_route
        with transaction.atomic():
            put(model, backend, **values)
        self._tell_routes(model)

    def unroute(self, **options: Any) -> None:
        model = console.find_model(options["name"])
        backend = console.find_backend(options["backend"])
        route = model.routes.filter(backend=backend).first()
        if route is None:
            raise CommandError(f"{model} has no route to {backend}.")
        console.remove(route)
        self._tell_routes(model)

    def switch(self, **options: Any) -> None:
        model = console.find_model(options["name"])
        changed = console.change(model, is_active=options["is_active"])
        status = "enabled" if model.is_active else "disabled"
        self.tell(f"{model} is {status}{'' if changed else ' already'}.")

    def _tell_routes(self, model: Model) -> None:
        routes = model.routes.select_related("backend").order_by("priority", "id")
        described = ", then ".join(console.describe_routes(routes))
        self.tell(f"{model} is answered by: {described or NO_BACKEND}")


def _add_settings(parser: CommandParser, *, counter_required: bool) -> None:
    parser.add_argument(
        "--counter",
        required=counter_required,
        choices=counters.names(),
        help="the model's documented rule for counting tokens, or generic: an estimate",
    )
    for option, (field, meaning) in NUMBERS.items():
        default = f" (default: {getattr(Model(), field)})" if counter_required else ""
        parser.add_argument(option, dest=field, type=int, metavar="N", help=f"{meaning}{default}")


def _add_route(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--backend", required=True, metavar="NAME")


def _values(options: dict[str, Any]) -> dict[str, Any]:
    fields = ("counter", *(field for field, _ in NUMBERS.values()))
    return {field: options[field] for field in fields if options[field] is not None}


def _currencies_by_model() -> dict[str, list[str]]:
    """Return the currencies that each model has a price in now."""
    found = defaultdict(list)
    in_force = Price.objects.filter(effective_from__lte=now()).order_by("model_name", "currency")
    for model_name, currency in in_force.values_list("model_name", "currency").distinct():
        found[model_name].append(currency)
    return found


def _row(model: Model, currencies: list[str], *, as_json: bool) -> Row:
    backends = console.describe_routes(model.routes.all())
    return {
        "name": model.name,
        "status": "active" if model.is_active else "disabled",
        "counter": model.counter,
        "context": model.context_tokens,
        "out_default": model.tokens_out_default,
        "out_max": model.tokens_out_max,
        "images_max": model.images_max,
        "backends": backends if as_json else ", ".join(backends) or NO_BACKEND,
        "price": currencies if as_json else ",".join(currencies) or NO_PRICE,
    }
