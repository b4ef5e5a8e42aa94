"""The catalog in Django's admin. What a person does here is recorded, as at the console."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.timezone import now

from gateway import base_url
from gateway.counting import counters
from gateway.models import Backend, Model, Route
from tenants.admin import AuditedAdmin
from tenants.models import AuditEntry


class BackendForm(forms.ModelForm):  # type: ignore[type-arg]
    credential = forms.CharField(
        required=False,
        max_length=4096,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="The bearer token for this backend. It is encrypted and never shown; empty keeps "
        "what is stored (`manage.py backend set NAME --no-credential` forgets it).",
    )

    class Meta:
        model = Backend
        fields = [
            "name",
            "kind",
            "base_url",
            "connect_timeout_s",
            "first_byte_timeout_s",
            "chunk_timeout_s",
            "total_timeout_s",
            "is_active",
        ]

    @cached_property
    def changed_data(self) -> list[str]:
        """Return the changed fields of the row: the one that the credential fills, not its own."""
        fields: list[str] = super().changed_data
        return ["credential_encrypted" if name == "credential" else name for name in fields]

    def clean_base_url(self) -> str:
        return base_url.normalise(self.cleaned_data["base_url"])


@admin.register(Backend)
class BackendAdmin(AuditedAdmin[Backend]):
    form = BackendForm
    list_display = ["name", "kind", "base_url", "stored_credential", "is_active"]
    list_filter = ["is_active", "kind"]
    search_fields = ["name", "base_url"]

    @admin.display(description="credential", boolean=True)
    def stored_credential(self, backend: Backend) -> bool:
        return backend.has_credential

    def save_model(
        self, request: HttpRequest, obj: Backend, form: "forms.ModelForm[Backend]", change: bool
    ) -> None:
        secret = form.cleaned_data["credential"]
        if secret:
            obj.set_credential(secret)
        super().save_model(request, obj, form, change)


class RouteInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Route
    extra = 1


class ModelForm(forms.ModelForm):  # type: ignore[type-arg]
    counter = forms.ChoiceField(
        choices=lambda: [(name, name) for name in counters.names()],
        help_text="How tokens are counted: the model's documented rule, or generic: an estimate.",
    )


@admin.register(Model)
class ModelAdmin(AuditedAdmin[Model]):
    form = ModelForm
    inlines = [RouteInline]
    list_display = [
        "name",
        "counter",
        "context_tokens",
        "tokens_out_default",
        "tokens_out_max",
        "images_max",
        "is_active",
    ]
    list_filter = ["is_active", "counter"]
    search_fields = ["name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["name"] if obj else []  # its prices and its keys' permissions go by its name

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save the routes, and record each that was added, changed or removed."""
        with transaction.atomic():
            formset.save(commit=False)
            for route in formset.deleted_objects:
                _record(request, "delete", route)
                route.delete()
            for route in formset.new_objects:
                route.save(force_insert=True)
                _record(request, "create", route)
            for route, fields in formset.changed_objects:
                route.save(update_fields=fields)
                _record(request, "change", route, fields=fields)

    def delete_model(self, request: HttpRequest, obj: Model) -> None:
        """Delete the model with its routes, each of them recorded."""
        with transaction.atomic():
            for route in obj.routes.select_related("model", "backend"):
                _record(request, "delete", route)
            super().delete_model(request, obj)


def _record(request: HttpRequest, verb: str, route: Route, **detail: Any) -> None:
    assert request.user.is_authenticated, "the admin has let a person in"
    AuditEntry.record(f"route.{verb}", route, by=request.user, at=now(), detail=detail)
