"""Principals: a key resolved to who calls and what they may do, without a query when it is warm.

    match cache.get(raw_key):                          # in the event loop, no I/O
        case Miss() as miss:
            found = await loader([miss.digest])        # `load`, in the loader's own thread
            answer = cache.put(miss, found[miss.digest])
        case answer: ...                               # Principal | Refusal

A poller reads `current_revision` and calls `confirm`. When the number has moved, the cache forgets
everything; when nobody could confirm it for a while, it answers nothing until somebody does. So a
revoked key is refused one poll after its revocation, and never served for long from a blind cache.
"""

import enum
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeVar

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import OuterRef, Q
from django.db.models.functions import JSONObject

from tenants import keys, revisions
from tenants.limits import Limit, LimitKind
from tenants.models import ApiKey

LOAD_MAX = 1000
TAG_BYTES = TAG_KEY_BYTES = 32
LIMIT_COLUMNS = (
    *("id", "organization_id", "team_id", "key_id"),
    *("model_name", "kind", "maximum", "is_shadow"),
)
T = TypeVar("T")


class Refusal(enum.Enum):
    """Why a key is not served. The first two do not know the caller (401), the others do (403)."""

    INVALID = "invalid_api_key"  # malformed, unknown or revoked: the caller must not learn which
    EXPIRED = "expired_api_key"
    ORGANIZATION_SUSPENDED = "organization_suspended"
    TEAM_SUSPENDED = "team_suspended"

    @property
    def code(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class LimitEntry:
    """A limit that stands over a key: its own, its team's, or its organization's (`level`)."""

    id: int
    level: str  # organization | team | key
    owner_id: int
    model_name: str  # empty: all models together
    kind: LimitKind
    maximum: int
    is_shadow: bool


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: organization, team and key, with what a request needs of each."""

    organization_id: int
    team_id: int
    key_id: int
    public_id: str
    digest: bytes = field(repr=False)
    organization_slug: str
    organization_name: str
    team_slug: str
    team_name: str
    key_name: str
    currency: str
    timezone: str
    bills_aborted: str  # tenants.models.Share
    bills_failed: str
    allowed_models: frozenset[str] | None  # None: every model
    expires_at: datetime | None
    limits: tuple[LimitEntry, ...] = ()
    limits_fail_closed: bool = False

    def may_use(self, model_name: str) -> bool:
        return self.allowed_models is None or model_name in self.allowed_models


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the database says of a key. Time is asked for at the end, so that it may be cached."""

    outcome: Principal | Refusal
    expires_at: datetime | None = None

    def answer(self, at: datetime) -> Principal | Refusal:
        if self.expires_at is not None and self.expires_at <= at:
            return Refusal.EXPIRED
        return self.outcome


@dataclass(frozen=True, slots=True)
class Miss:
    """Nothing is known of this digest. `generation` is what the cache had forgotten up to then."""

    digest: bytes = field(repr=False)
    tag: bytes = field(repr=False)  # the cache's own name for the key
    generation: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a cache holds and how long it trusts it. Refused keys cannot push out good ones."""

    principals_max: int = 100_000
    refusals_max: int = 10_000
    refusal_ttl_s: float = 10
    unconfirmed_s_max: float = 5


def current_revision() -> int:
    return revisions.read([revisions.PRINCIPALS])[revisions.PRINCIPALS]


def load(digests: Collection[bytes]) -> dict[bytes, Resolved]:
    """Resolve at most LOAD_MAX digests with one query; an unknown one is resolved to INVALID."""
    assert len(digests) <= LOAD_MAX
    rows = (
        ApiKey.objects.filter(digest__in=digests)
        .select_related("organization", "team")
        .annotate(limits_over_it=_limits_over_a_key())
    )
    known = {bytes(key.digest): _resolve(key, key.limits_over_it) for key in rows}
    return {digest: known.get(digest, Resolved(Refusal.INVALID)) for digest in digests}


def _limits_over_a_key() -> ArraySubquery:
    limits = Limit.objects.filter(
        Q(team__isnull=True) | Q(team=OuterRef("team_id")),
        Q(key__isnull=True) | Q(key=OuterRef("pk")),
        organization=OuterRef("organization_id"),
    )
    entry = JSONObject(**{name: name for name in LIMIT_COLUMNS})
    return ArraySubquery(limits.order_by("id").values(entry=entry))


def _resolve(key: ApiKey, limits: list[dict[str, Any]]) -> Resolved:
    if key.revoked_at is not None:
        return Resolved(Refusal.INVALID)
    if not key.organization.is_active:
        return Resolved(Refusal.ORGANIZATION_SUSPENDED, key.expires_at)
    if not key.team.is_active:
        return Resolved(Refusal.TEAM_SUSPENDED, key.expires_at)
    return Resolved(_principal(key, limits), key.expires_at)


def _principal(key: ApiKey, limits: list[dict[str, Any]]) -> Principal:
    organization, team = key.organization, key.team
    return Principal(
        organization_id=organization.pk,
        team_id=team.pk,
        key_id=key.pk,
        public_id=key.public_id,
        digest=bytes(key.digest),
        organization_slug=organization.slug,
        organization_name=organization.name,
        team_slug=team.slug,
        team_name=team.name,
        key_name=key.name,
        currency=organization.currency,
        timezone=organization.timezone,
        bills_aborted=organization.bills_aborted,
        bills_failed=organization.bills_failed,
        allowed_models=_common(organization.allowed_models, key.allowed_models),
        expires_at=key.expires_at,
        limits=tuple(map(_limit_entry, limits)),
        limits_fail_closed=organization.limits_fail_closed,
    )


def _limit_entry(row: dict[str, Any]) -> LimitEntry:
    level = "key" if row["key_id"] else "team" if row["team_id"] else "organization"
    return LimitEntry(
        id=row["id"],
        level=level,
        owner_id=row[f"{level}_id"],
        model_name=row["model_name"],
        kind=LimitKind(row["kind"]),
        maximum=row["maximum"],
        is_shadow=row["is_shadow"],
    )


def _common(ours: list[str], theirs: list[str]) -> frozenset[str] | None:
    """Intersect two lists of which an empty one allows everything; None if both do."""
    if not ours or not theirs:
        return frozenset(ours or theirs) or None
    return frozenset(ours) & frozenset(theirs)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class PrincipalCache:
    """Remember what keys were resolved to, least recently used out first.

    It knows them by a keyed hash of its own, with a secret that no other process has: a key that is remembered is
    neither parsed nor digested again. Belongs to one event loop and does no I/O. `wall` tells when a key expires,
    `steady` how old the last confirmation is.
    """

    def __init__(
        self,
        pepper: bytes,
        limits: Limits = Limits(),
        *,
        wall: Callable[[], datetime] = _utc_now,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pepper = pepper
        self._tag_key = secrets.token_bytes(TAG_KEY_BYTES)
        self._limits = limits
        self._wall = wall
        self._steady = steady
        self._principals: OrderedDict[bytes, Resolved] = OrderedDict()
        self._refusals: OrderedDict[bytes, tuple[Resolved, float]] = OrderedDict()
        self._generation = 0
        self._revision: int | None = None
        self._confirmed_at = float("-inf")

    def __len__(self) -> int:
        return len(self._principals) + len(self._refusals)

    def get(self, raw: str | bytes) -> Principal | Refusal | Miss:
        """Answer from memory. Junk is refused before anything is looked up."""
        if len(raw) != keys.LENGTH:
            return Refusal.INVALID
        tag = self._tag(raw)
        resolved = self._recall(tag)
        if resolved is not None:
            return resolved.answer(self._wall())
        key = keys.parse(raw)
        if key is None:
            return Refusal.INVALID
        return Miss(keys.digest(key, self._pepper), tag, self._generation)

    def put(self, miss: Miss, resolved: Resolved) -> Principal | Refusal:
        """Answer the miss, and remember it, unless the cache was cleared since.

        What was read before a revocation may arrive after the clear: it still answers the request
        that asked before, and no other.
        """
        if miss.generation == self._generation:
            self._remember(miss.tag, resolved)
        return resolved.answer(self._wall())

    def confirm(self, revision: int, at_monotonic: float) -> None:
        """Trust the entries anew from `at_monotonic` on: when the poll was sent, not answered."""
        if revision != self._revision:
            self.clear()
            self._revision = revision
        self._confirmed_at = at_monotonic

    def clear(self) -> None:
        self._generation += 1
        self._principals.clear()
        self._refusals.clear()

    def _tag(self, raw: str | bytes) -> bytes:
        text = raw.encode() if isinstance(raw, str) else raw
        return blake2b(text, key=self._tag_key, digest_size=TAG_BYTES).digest()

    def _recall(self, tag: bytes) -> Resolved | None:
        moment = self._steady()
        if moment - self._confirmed_at > self._limits.unconfirmed_s_max:
            return None
        resolved = self._principals.get(tag)
        if resolved is not None:
            self._principals.move_to_end(tag)
            return resolved
        refused, until = self._refusals.get(tag, (None, moment))
        return refused if moment < until else None

    def _remember(self, tag: bytes, resolved: Resolved) -> None:
        if isinstance(resolved.outcome, Principal):
            _keep(self._principals, tag, resolved, self._limits.principals_max)
        else:
            until = self._steady() + self._limits.refusal_ttl_s
            _keep(self._refusals, tag, (resolved, until), self._limits.refusals_max)


def _keep(entries: OrderedDict[bytes, T], tag: bytes, entry: T, maximum: int) -> None:
    entries[tag] = entry
    entries.move_to_end(tag)
    if len(entries) > maximum:
        entries.popitem(last=False)
