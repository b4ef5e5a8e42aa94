"""The tenants in Django's admin. What a person does here is recorded, as at the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db import models, transaction
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.timezone import now

from tenants.limits import Limit
from tenants.models import ApiKey, AuditEntry, Membership, Organization, Suspendable, Team

M = TypeVar("M", bound=models.Model)
S = TypeVar("S", bound=Suspendable)

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin
else:  # Django's own class takes no type parameters at run time.

    class ModelAdmin(admin.ModelAdmin):
        def __class_getitem__(cls, _: object) -> type:
            return cls


class ReadOnlyAdmin(ModelAdmin[M]):
    """Shows rows that are written elsewhere, and offers no change. Does not count them all for a page."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False


class ReadOnlyInline(admin.TabularInline):  # type: ignore[type-arg]
    """Shows such rows below the one that they belong to."""

    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class AuditedAdmin(ModelAdmin[M]):
    """Records every addition, change and deletion, and writes only the fields that were changed."""

    def save_model(self, request: HttpRequest, obj: M, form: ModelForm[M], change: bool) -> None:
        with transaction.atomic():
            if not change:
                obj.save(force_insert=True)
                self.audit(request, "create", obj)
            elif form.changed_data:
                obj.save(update_fields=form.changed_data)
                self.audit(request, "change", obj, detail={"fields": form.changed_data})

    def delete_model(self, request: HttpRequest, obj: M) -> None:
        with transaction.atomic():
            self.audit(request, "delete", obj)
            obj.delete()

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[M]) -> None:
        with transaction.atomic():
            for obj in queryset:
                self.delete_model(request, obj)

    def audit(
        self, request: HttpRequest, verb: str, obj: M, detail: dict[str, Any] | None = None
    ) -> None:
        action = f"{obj._meta.verbose_name}.{verb}"
        AuditEntry.record(action, obj, by=_person(request), at=now(), detail=detail)


class ChangingAdmin(AuditedAdmin[M]):
    """Changes a row by its own verb, `change`, which records what was before."""

    def save_model(self, request: HttpRequest, obj: M, form: ModelForm[M], change: bool) -> None:
        if not change:
            super().save_model(request, obj, form, change)
            return
        values = {name: form.cleaned_data[name] for name in form.changed_data}
        stored: Any = type(obj)._default_manager.get(pk=obj.pk)
        stored.change(by=_person(request), at=now(), **values)


class SuspendableAdmin(AuditedAdmin[S]):
    """Suspends and resumes by action, so that it is recorded as such."""

    actions = ["suspend", "resume"]

    @admin.action(description="Suspend: refuse all its keys", permissions=["change"])
    def suspend(self, request: HttpRequest, queryset: models.QuerySet[S]) -> None:
        changed = [row for row in queryset if row.suspend(by=_person(request), at=now())]
        self.message_user(request, f"Suspended {len(changed)}.")

    @admin.action(description="Resume: let its keys in again", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: models.QuerySet[S]) -> None:
        changed = [row for row in queryset if row.resume(by=_person(request), at=now())]
        self.message_user(request, f"Resumed {len(changed)}.")


@admin.register(Organization)
class OrganizationAdmin(SuspendableAdmin[Organization]):
    list_display = ["slug", "name", "is_active", "currency", "timezone", "created_at"]
    list_filter = ["is_active", "currency"]
    search_fields = ["slug", "name"]

    def get_readonly_fields(
        self, request: HttpRequest, obj: Organization | None = None
    ) -> list[str]:
        # What is booked is priced in its currency, so that stays.
        return ["is_active", "created_at", *(["currency"] if obj else [])]

    def has_delete_permission(self, request: HttpRequest, obj: Organization | None = None) -> bool:
        return False  # It has a history at once: its own creation.


@admin.register(Team)
class TeamAdmin(SuspendableAdmin[Team]):
    list_display = ["slug", "organization", "name", "is_active", "created_at"]
    list_select_related = ["organization"]
    list_filter = ["is_active"]
    search_fields = ["slug", "name", "organization__slug"]
    raw_id_fields = ["organization"]

    def get_readonly_fields(self, request: HttpRequest, obj: Team | None = None) -> list[str]:
        # A team does not move: its keys and its usage belong to the organization it was made in.
        return ["is_active", "created_at", *(["organization"] if obj else [])]


@admin.register(Membership)
class MembershipAdmin(AuditedAdmin[Membership]):
    list_display = ["user", "organization", "role", "created_at"]
    list_select_related = ["user", "organization"]
    list_filter = ["role"]
    search_fields = ["user__username", "organization__slug"]
    raw_id_fields = ["user", "organization"]
    readonly_fields = ["created_at"]


@admin.register(ApiKey)
class ApiKeyAdmin(AuditedAdmin[ApiKey]):
    """Creates a key and shows it once. A secret cannot be edited, and a key cannot be deleted."""

    list_display = ["public_id", "last4", "name", "team", "status", "expires_at", "created_at"]
    list_select_related = ["organization", "team__organization"]
    search_fields = ["public_id", "name", "team__slug", "organization__slug"]
    raw_id_fields = ["team"]
    exclude = ["organization"]  # it is the team's
    actions = ["revoke"]

    @admin.display(description="status")
    def status(self, key: ApiKey) -> str:
        return key.status(now())

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        if obj is None:
            return []
        return ["team", "public_id", "last4", "created_at", "created_by", "revoked_at"]

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def save_model(
        self, request: HttpRequest, obj: ApiKey, form: ModelForm[ApiKey], change: bool
    ) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        raw = obj.issue(by=_person(request), at=now())
        self.message_user(
            request, f"Copy the key now, it is not shown again: {raw.secret}", messages.WARNING
        )

    @admin.action(description="Revoke: refuse for good", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: models.QuerySet[ApiKey]) -> None:
        revoked = [key for key in queryset if key.revoke(by=_person(request), at=now())]
        self.message_user(request, f"Revoked {len(revoked)}.")


@admin.register(Limit)
class LimitAdmin(AuditedAdmin[Limit]):
    list_display = ["organization", "team", "key", "model_name", "kind", "maximum", "is_shadow"]
    list_select_related = ["organization", "team__organization", "key"]
    list_filter = ["kind", "is_shadow"]
    search_fields = ["organization__slug", "team__slug", "key__public_id", "model_name"]
    raw_id_fields = ["organization", "team", "key"]

    def get_readonly_fields(self, request: HttpRequest, obj: Limit | None = None) -> list[str]:
        # What a limit counts does not change under it; set another one instead.
        return ["organization", "team", "key", "model_name", "kind"] if obj else []


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin[AuditEntry]):
    """Shows the record. The database would refuse a change; so the pages do not offer one."""

    list_display = ["at", "organization", "actor", "action", "subject"]
    list_select_related = ["organization"]
    list_filter = ["action"]
    search_fields = ["actor", "subject", "organization__slug"]
    date_hierarchy = "at"


def _person(request: HttpRequest) -> User:
    assert isinstance(request.user, User), "the admin has let a person in"
    return request.user
