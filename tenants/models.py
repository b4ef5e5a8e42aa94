"""Who may call: organizations, their teams and people, the teams' keys, and the record of it all.

What must hold is held by the database: by constraints here, and by the migrations where Django has
no words for it (a key's team is its organization's own; audit entries are append-only).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Self, TypeAlias
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Length
from django.db.models.lookups import Exact
from django.utils.timezone import now

from tenants import keys
from tenants.limits import Limit as Limit

# \A and \Z mean the same to Python and to PostgreSQL; $ does not.
SLUG = r"\A[a-z0-9][a-z0-9-]*\Z"
SLUG_VALIDATOR = RegexValidator(
    SLUG, "Use small letters, digits and hyphens, beginning with a letter or a digit."
)
CURRENCY = r"\A[A-Z]{3}\Z"
CURRENCY_VALIDATOR = RegexValidator(CURRENCY, "Use the three capital letters of ISO 4217.")
PUBLIC_ID = r"\A[0-9A-Za-z]{8}\Z"
LAST4 = r"\A[0-9A-Za-z]{4}\Z"
DIGEST_BYTES = 32
ALLOWED_MODELS_MAX = 256

Actor: TypeAlias = User | str | None
"""Who acts: a person with an account, another with a name (`console:alice`), or Tessera itself."""


def validate_timezone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValidationError(f"{name!r} is no time zone; try one like Asia/Taipei.") from error


def allowed_models_field(help_text: str) -> ArrayField[list[str], list[str]]:
    return ArrayField(
        models.CharField(max_length=200), default=list, blank=True, help_text=help_text
    )


def allowed_models_condition() -> Q:
    return Q(allowed_models__len__lte=ALLOWED_MODELS_MAX) & ~Q(allowed_models__contains=[""])


class Suspendable(models.Model):
    """Something whose keys can be refused for a while, and let in again."""

    is_active = models.BooleanField(default=True)

    class Meta:
        abstract = True

    def suspend(self, *, by: Actor, at: datetime) -> bool:
        """Refuse its keys from now on; False if it was suspended already."""
        return self._switch("suspend", is_active=False, by=by, at=at)

    def resume(self, *, by: Actor, at: datetime) -> bool:
        """Let its keys in again; False if it was active already."""
        return self._switch("resume", is_active=True, by=by, at=at)

    def _switch(self, verb: str, *, is_active: bool, by: Actor, at: datetime) -> bool:
        with transaction.atomic():
            other = type(self)._default_manager.filter(pk=self.pk, is_active=not is_active)
            changed = other.update(is_active=is_active)  # 0: another process got there first
            if changed:
                AuditEntry.record(f"{self._meta.model_name}.{verb}", self, by=by, at=at)
        self.is_active = is_active
        return bool(changed)


class Share(models.TextChoices):
    """How much of an answer that did not complete is billed."""

    DELIVERED = "delivered", "the prompt, and what was generated"
    PROMPT = "prompt", "the prompt only"
    NOTHING = "nothing", "nothing"


class Organization(Suspendable):
    """Who pays. Its time zone and currency rule its periods and invoices."""

    name = models.CharField(max_length=200)
    slug = models.CharField(max_length=63, unique=True, validators=[SLUG_VALIDATOR])
    timezone = models.CharField(
        max_length=64, default="Asia/Taipei", validators=[validate_timezone]
    )
    currency = models.CharField(max_length=3, default="TWD", validators=[CURRENCY_VALIDATOR])
    allowed_models = allowed_models_field("What its keys may call; empty for every model.")
    bills_aborted = models.CharField(
        max_length=16,
        choices=Share,
        default=Share.DELIVERED,
        db_default=Share.DELIVERED,
        help_text="What an answer costs whose client left before its end.",
    )
    bills_failed = models.CharField(
        max_length=16,
        choices=Share,
        default=Share.NOTHING,
        db_default=Share.NOTHING,
        help_text="What an answer costs that the backend broke off, or that ran into a deadline.",
    )
    bills_lost = models.CharField(
        max_length=16,
        choices=[(Share.PROMPT, Share.PROMPT.label), (Share.NOTHING, Share.NOTHING.label)],
        default=Share.PROMPT,
        db_default=Share.PROMPT,
        help_text="What a request costs whose gateway process died, as nobody knows what it generated.",
    )
    limits_fail_closed = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Refuse requests under limits while Redis is away, rather than let each gateway process keep "
        "its share of them.",
    )
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(
                condition=Q(bills_aborted__in=Share.values)
                & Q(bills_failed__in=Share.values)
                & Q(bills_lost__in=[Share.PROMPT, Share.NOTHING]),
                name="organization_bills_known_shares",
            ),
            models.CheckConstraint(condition=~Q(name=""), name="organization_has_a_name"),
            models.CheckConstraint(
                condition=Q(slug__regex=SLUG), name="organization_slug_is_plain"
            ),
            models.CheckConstraint(
                condition=Q(currency__regex=CURRENCY), name="organization_currency_is_iso_4217"
            ),
            models.CheckConstraint(condition=~Q(timezone=""), name="organization_has_a_timezone"),
            models.CheckConstraint(
                condition=allowed_models_condition(), name="organization_allowed_models_are_names"
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class Team(Suspendable):
    """A part of an organization that has keys and, later, a budget of its own."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="teams")
    name = models.CharField(max_length=200)
    slug = models.CharField(max_length=63, validators=[SLUG_VALIDATOR])
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["organization__slug", "slug"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "slug"], name="team_slug_once_per_organization"
            ),
            # What the composite foreign key of a key points at.
            models.UniqueConstraint(fields=["id", "organization"], name="team_with_organization"),
            models.CheckConstraint(condition=~Q(name=""), name="team_has_a_name"),
            models.CheckConstraint(condition=Q(slug__regex=SLUG), name="team_slug_is_plain"),
        ]

    def __str__(self) -> str:
        return f"{self.organization.slug}/{self.slug}"


class Role(models.TextChoices):
    OWNER = "owner"
    ADMIN = "admin"
    BILLING = "billing"
    MEMBER = "member"
    VIEWER = "viewer"


class Membership(models.Model):
    """A person's part in an organization."""

    organization = models.ForeignKey(
        Organization, on_delete=models.CASCADE, related_name="memberships"
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )
    role = models.CharField(max_length=16, choices=Role, default=Role.MEMBER)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["organization__slug", "user__username"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "user"], name="membership_once_per_person"
            ),
            models.CheckConstraint(
                condition=Q(role__in=Role.values), name="membership_role_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user.get_username()} ({self.role}) in {self.organization.slug}"


class KeyStatus(enum.StrEnum):
    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"
    SUSPENDED = "suspended"


class ApiKey(models.Model):
    """A secret that speaks for a team. We keep its digest only, so nobody can be shown it twice."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="keys")
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="keys")
    name = models.CharField(max_length=200)
    public_id = models.CharField(max_length=keys.PUBLIC_ID_LENGTH, unique=True, editable=False)
    digest = models.BinaryField(max_length=DIGEST_BYTES, unique=True)
    last4 = models.CharField(max_length=4, editable=False)
    pepper_version = models.PositiveSmallIntegerField(default=1, editable=False)
    allowed_models = allowed_models_field("What it may call; empty for all its organization may.")
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )

    class Meta:
        verbose_name = "key"
        ordering = ["-created_at", "-id"]
        constraints = [
            # What the composite foreign key of a limit points at.
            models.UniqueConstraint(fields=["id", "team"], name="key_with_team"),
            models.CheckConstraint(condition=~Q(name=""), name="key_has_a_name"),
            models.CheckConstraint(
                condition=Q(public_id__regex=PUBLIC_ID), name="key_public_id_is_base62"
            ),
            models.CheckConstraint(
                condition=Exact(Length("digest"), Value(DIGEST_BYTES)), name="key_digest_is_whole"
            ),
            models.CheckConstraint(condition=Q(last4__regex=LAST4), name="key_last4_is_base62"),
            models.CheckConstraint(
                condition=Q(pepper_version__gte=1), name="key_pepper_version_is_set"
            ),
            models.CheckConstraint(
                condition=Q(expires_at__isnull=True) | Q(expires_at__gt=F("created_at")),
                name="key_expires_after_its_creation",
            ),
            models.CheckConstraint(
                condition=allowed_models_condition(), name="key_allowed_models_are_names"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.hint})"

    @property
    def hint(self) -> str:
        """Return enough of the key to recognise it, and not enough to use it."""
        return f"{keys.PREFIX}_{self.public_id}_…{self.last4}"

    def is_expired(self, at: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= at

    def is_usable(self, at: datetime) -> bool:
        return self.status(at) is KeyStatus.ACTIVE

    def status(self, at: datetime) -> KeyStatus:
        """Say why the key is refused, the reason first that lasts longest."""
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        if self.is_expired(at):
            return KeyStatus.EXPIRED
        if not (self.organization.is_active and self.team.is_active):
            return KeyStatus.SUSPENDED
        return KeyStatus.ACTIVE

    def clean(self) -> None:
        if self.is_expired(self.created_at):
            raise ValidationError({"expires_at": "A key cannot expire before it is created."})

    @classmethod
    def mint(
        cls,
        team: Team,
        name: str,
        *,
        by: Actor,
        at: datetime,
        allowed_models: Iterable[str] = (),
        expires_at: datetime | None = None,
    ) -> tuple[Self, keys.RawKey]:
        """Create a key for the team, and return it with its secret, which nothing else keeps."""
        key = cls(team=team, name=name, allowed_models=list(allowed_models), expires_at=expires_at)
        return key, key.issue(by=by, at=at)

    def issue(self, *, by: Actor, at: datetime) -> keys.RawKey:
        """Give this new key its secret and save it. Return the secret; nothing else keeps it.

        ValidationError if a field is wrong.
        """
        assert self._state.adding, "a key that was issued keeps its secret"
        raw = keys.mint()
        self.organization_id = self.team.organization_id
        self.public_id, self.last4 = raw.public_id, raw.last4
        self.digest = keys.digest(raw, settings.KEY_PEPPER)
        self.created_at = at
        self.created_by = by if isinstance(by, User) else None
        self.full_clean()
        with transaction.atomic():
            self.save(force_insert=True)
            AuditEntry.record("key.create", self, by=by, at=at)
        return raw

    def revoke(self, *, by: Actor, at: datetime) -> bool:
        """Refuse the key for good; False if it was revoked already, which stays as it is."""
        with transaction.atomic():
            valid = ApiKey.objects.filter(pk=self.pk, revoked_at__isnull=True)
            if not valid.update(revoked_at=at):
                self.refresh_from_db(fields=["revoked_at"])
                return False  # Another process got there first.
            self.revoked_at = at
            AuditEntry.record("key.revoke", self, by=by, at=at)
        return True


class AuditEntry(models.Model):
    """Who did what to which subject, and when. Entries never change: triggers see to it.

    Names are written down as they were, without foreign keys: an entry outlives actor and subject.
    Only the organization is a reference, so one with a history is suspended, never deleted.
    """

    organization = models.ForeignKey(
        Organization,
        on_delete=models.PROTECT,
        null=True,  # for what belongs to the installation, such as a backend
        related_name="audit_entries",
    )
    at = models.DateTimeField(default=now)
    actor = models.CharField(max_length=200)
    actor_user_id = models.BigIntegerField(null=True)
    action = models.CharField(max_length=64)
    subject_type = models.CharField(max_length=64)
    subject_id = models.CharField(max_length=64)
    subject = models.CharField(max_length=300)
    detail = models.JSONField(default=dict)

    class Meta:
        verbose_name_plural = "audit entries"
        ordering = ["-at", "-id"]
        indexes = [
            models.Index(fields=["organization", "-at"], name="audit_by_organization"),
            models.Index(fields=["subject_type", "subject_id"], name="audit_by_subject"),
            models.Index(  # billing looks every few seconds for what organizations are to be told
                fields=["at"],
                condition=Q(action__in=["key.create", "key.revoke"]),
                name="audit_of_keys",
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=~Q(actor=""), name="audit_has_an_actor"),
            models.CheckConstraint(condition=~Q(action=""), name="audit_has_an_action"),
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor} {self.action} {self.subject}"

    @classmethod
    def record(
        cls,
        action: str,
        subject: models.Model,
        *,
        by: Actor,
        at: datetime,
        detail: dict[str, Any] | None = None,
    ) -> Self:
        """Write down that `by` did `action` (`key.revoke`). `detail` must not hold a secret."""
        user = by if isinstance(by, User) else None
        return cls.objects.create(
            organization_id=_organization_id(subject),
            at=at,
            actor=user.get_username() if user else by or "tessera",
            actor_user_id=user.pk if user else None,
            action=action,
            subject_type=subject._meta.label_lower,
            subject_id=str(subject.pk),
            subject=str(subject)[:300],
            detail=detail or {},
        )


def _organization_id(subject: models.Model) -> int | None:
    if isinstance(subject, Organization):
        return subject.pk
    return getattr(subject, "organization_id", None)
