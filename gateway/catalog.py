"""The catalog as the data plane sees it: an immutable snapshot of models, routes, backends and prices."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from billing import prices
from billing.models import Account, Price, PriceList
from billing.rating import Rates
from gateway.counting import counters
from gateway.counting.counters import Counter
from gateway.errors import Forbidden, GatewayError, NotFound
from gateway.models import Backend, Model, Route
from tenants import credentials, revisions
from tenants.principals import Principal

REVISION = "catalog"


class ModelNotPriced(GatewayError):
    """A model without a price is refused: it must not cost nothing."""

    status = 503
    default_code = "model_not_priced"


class NoBackend(GatewayError):
    status = 503
    default_code = "no_backend_available"


@dataclass(frozen=True, slots=True)
class BackendEntry:
    name: str
    kind: str
    base_url: str
    credential: str
    connect_timeout_s: int
    first_byte_timeout_s: int
    chunk_timeout_s: int
    total_timeout_s: int

    def __repr__(self) -> str:
        return f"BackendEntry({self.name!r})"


@dataclass(frozen=True, slots=True)
class RouteEntry:
    backend: BackendEntry
    backend_model: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    name: str
    counter: Counter
    context_tokens: int
    tokens_out_default: int
    tokens_out_max: int
    images_max: int
    created: int  # seconds since 1970
    routes: tuple[RouteEntry, ...]  # best first


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything the door must know to serve a model, at one revision."""

    revision: int
    models: dict[str, ModelEntry]
    rates: dict[tuple[int, str], tuple[Rates, ...]]  # (price list, model) → versions, oldest first
    default_lists: dict[str, int]  # currency → price list
    own_lists: dict[int, int]  # organization → price list, where it has one

    @property
    def backends(self) -> set[BackendEntry]:
        return {route.backend for model in self.models.values() for route in model.routes}

    def model_for(self, principal: Principal, name: str) -> ModelEntry:
        """Return the model if there is one and this key may use it: NotFound, Forbidden."""
        entry = self.models.get(name)
        if entry is None:
            raise NotFound(
                f"The model {name[:200]!r} does not exist.", code="model_not_found", param="model"
            )
        if principal.allowed_models is not None and name not in principal.allowed_models:
            raise Forbidden(
                f"This key may not use the model {name!r}.", code="model_not_allowed", param="model"
            )
        return entry

    def models_for(self, principal: Principal) -> list[ModelEntry]:
        """Return the models that this key may use, by name."""
        allowed = principal.allowed_models
        return [entry for name, entry in self.models.items() if allowed is None or name in allowed]

    def rates_for(
        self, model: ModelEntry, organization_id: int, currency: str, at: datetime
    ) -> Rates:
        """Return the price version in force at that instant: of the organization's own list, else of the default one.

        Raises ModelNotPriced if neither has one in that currency, which is the organization's.
        """
        own, default = self.own_lists.get(organization_id), self.default_lists.get(currency)
        for price_list_id in (own, default):
            rates = self._in_force(price_list_id, model.name, at)
            if rates is not None and rates.currency == currency:
                return rates
        raise ModelNotPriced(
            f"The model {model.name!r} has no price in {currency} yet; ask the operator of this gateway.",
            param="model",
        )

    def _in_force(self, price_list_id: int | None, model_name: str, at: datetime) -> Rates | None:
        if price_list_id is None:
            return None
        versions = self.rates.get((price_list_id, model_name), ())
        index = bisect_right(versions, at, key=lambda rates: rates.effective_from)
        return versions[index - 1] if index else None


def route_for(model: ModelEntry) -> RouteEntry:
    """Return the route to try first."""
    if not model.routes:
        raise NoBackend(
            f"No backend serves the model {model.name!r} now.", headers={"retry-after": "30"}
        )
    return model.routes[0]


def load() -> Catalog:
    """Read the catalog from the database. The revision is read first, so that a change in between is seen later."""
    revision = revisions.read([REVISION])[REVISION]
    routes = _routes_by_model()
    models = {
        model.name: _entry(model, routes.get(model.pk, ()))
        for model in Model.objects.filter(is_active=True).order_by("name")
    }
    return Catalog(
        revision=revision,
        models=models,
        rates=_rates(),
        default_lists=dict(PriceList.objects.filter(is_default=True).values_list("currency", "pk")),
        own_lists=dict(
            Account.objects.exclude(price_list=None).values_list("organization_id", "price_list_id")
        ),
    )


def _routes_by_model() -> dict[int, tuple[RouteEntry, ...]]:
    found: dict[int, list[RouteEntry]] = defaultdict(list)
    entries: dict[int, BackendEntry] = {}
    active: Iterable[Route] = (
        Route.objects.filter(is_active=True, backend__is_active=True)
        .select_related("backend", "model")
        .order_by("priority", "id")
    )
    for route in active:
        backend = entries.setdefault(route.backend_id, _backend_entry(route.backend))
        found[route.model_id].append(RouteEntry(backend, route.backend_model or route.model.name))
    return {model_id: tuple(routes) for model_id, routes in found.items()}


def _backend_entry(backend: Backend) -> BackendEntry:
    token = bytes(backend.credential_encrypted)
    return BackendEntry(
        name=backend.name,
        kind=backend.kind,
        base_url=backend.base_url.rstrip("/"),
        credential=credentials.decrypt(token) if token else "",
        connect_timeout_s=backend.connect_timeout_s,
        first_byte_timeout_s=backend.first_byte_timeout_s,
        chunk_timeout_s=backend.chunk_timeout_s,
        total_timeout_s=backend.total_timeout_s,
    )


def _entry(model: Model, routes: tuple[RouteEntry, ...]) -> ModelEntry:
    return ModelEntry(
        name=model.name,
        counter=counters.get(model.counter),
        context_tokens=model.context_tokens,
        tokens_out_default=model.tokens_out_default,
        tokens_out_max=model.tokens_out_max,
        images_max=model.images_max,
        created=int(model.created_at.timestamp()),
        routes=routes,
    )


def _rates() -> dict[tuple[int, str], tuple[Rates, ...]]:
    versions: dict[tuple[int, str], list[Rates]] = defaultdict(list)
    for price in Price.objects.order_by("effective_from"):
        versions[price.price_list_id, price.model_name].append(prices.rates(price))
    return {key: tuple(rates) for key, rates in versions.items()}
