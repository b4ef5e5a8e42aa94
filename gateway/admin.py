"""The catalog in Django's admin."""

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from gateway.counting import counters
from gateway.models import Backend, Model, Route


class BackendForm(forms.ModelForm):  # type: ignore[type-arg]
    credential = forms.CharField(
        required=False,
        strip=True,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="The bearer token for this backend. It is encrypted and never shown; empty keeps what is stored.",
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


@admin.register(Backend)
class BackendAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = BackendForm
    list_display = ["name", "kind", "base_url", "has_credential", "is_active"]

    def save_model(
        self, request: HttpRequest, obj: Backend, form: BackendForm, change: bool
    ) -> None:
        if form.cleaned_data["credential"]:
            obj.set_credential(form.cleaned_data["credential"])
        super().save_model(request, obj, form, change)


class RouteInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Route
    extra = 1


class ModelForm(forms.ModelForm):  # type: ignore[type-arg]
    counter = forms.ChoiceField(choices=lambda: [(name, name) for name in counters.names()])


@admin.register(Model)
class ModelAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = ModelForm
    inlines = [RouteInline]
    list_display = ["name", "counter", "context_tokens", "tokens_out_default", "images_max", "is_active"]
    search_fields = ["name"]
