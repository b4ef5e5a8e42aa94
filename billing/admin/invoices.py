"""Invoices, payments and credit in Django's admin. What is issued can be read and downloaded, and is never edited."""

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from billing.invoicing import credit, exports
from billing.invoicing.invoices import CreditGrant, Invoice, InvoiceLine, Issuer, Payment
from billing.money import format_minor, parse_minor
from tenants.admin import AuditedAdmin, ReadOnlyAdmin, ReadOnlyInline

FORMATS = ("pdf", "csv", "json")


class LineInline(ReadOnlyInline):
    model = InvoiceLine
    fields = [
        *("position", "team_slug", "model_name", "kind", "is_allowance"),
        *("quantity", "late_quantity", "amount_minor", "usage"),
    ]
    readonly_fields = ["usage"]

    @admin.display(description="usage")
    def usage(self, line: InvoiceLine) -> SafeString | str:
        if line.is_allowance or line.invoice.corrects_id is not None:
            return ""
        page = reverse("admin:billing_invoice_line", args=[line.invoice_id, line.position])
        return format_html('<a href="{}">CSV</a>', page)


class PaymentInline(ReadOnlyInline):
    model = Payment
    fields = ["id", "received_at", "amount_minor", "method", "reference", "reverses"]
    readonly_fields = ["id"]


@admin.register(Invoice)
class InvoiceAdmin(ReadOnlyAdmin[Invoice]):
    list_display = ["__str__", "organization", "kind", "period_start", "standing", "total", "left"]
    list_select_related = ["organization"]
    list_filter = ["status", "kind", "currency"]
    search_fields = ["number", "organization__slug"]
    inlines = [LineInline, PaymentInline]
    fields = [
        *("number", "organization", "kind", "corrects", "replaces", "rated_under"),
        *("standing", "held_back"),
        *("period_start", "period_end", "drafted_at", "closed_at", "issued_at", "due_at"),
        *("total", "left", "voided_at", "void_reason", "reminders", "reminded_at"),
        *("content_sha256", "previous_sha256", "downloads"),
    ]
    readonly_fields = ["standing", "total", "left", "downloads"]

    @admin.display(description="status")
    def standing(self, invoice: Invoice) -> str:
        return invoice.standing(now())

    @admin.display(description="total", ordering="total_minor")
    def total(self, invoice: Invoice) -> str:
        return f"{invoice.currency} {format_minor(invoice.total_minor, invoice.currency)}"

    @admin.display(description="still to pay")
    def left(self, invoice: Invoice) -> str:
        return format_minor(invoice.open_minor, invoice.currency)

    @admin.display(description="downloads")
    def downloads(self, invoice: Invoice) -> SafeString:
        links = (
            (reverse("admin:billing_invoice_download", args=[invoice.pk, format]), format.upper())
            for format in FORMATS
        )
        return format_html_join(" · ", '<a href="{}">{}</a>', links)

    def get_urls(self) -> list[URLPattern]:
        download = self.admin_site.admin_view(self.download)
        return [
            path("<int:pk>/download/<str:format>/", download, name="billing_invoice_download"),
            path(
                "<int:pk>/lines/<int:line>/usage-csv/",
                download,
                {"format": "usage-csv"},
                name="billing_invoice_line",
            ),
            *super().get_urls(),
        ]

    def download(
        self, request: HttpRequest, pk: int, format: str, line: int | None = None
    ) -> HttpResponseBase:
        """Answer with the invoice, or the usage behind a line of it, as a file that is sent as it is read."""
        invoice = self.get_object(request, str(pk))
        if invoice is None or not self.has_view_permission(request):
            return HttpResponse(status=404)
        try:
            return exports.response(invoice, format, line)
        except ValueError:
            return HttpResponse(status=404)


@admin.register(Issuer)
class IssuerAdmin(AuditedAdmin[Issuer]):
    """Who bills. A change is on the invoices that follow; its prefix stays, as it is in their numbers."""

    list_display = ["name", "prefix", "tax_id", "timezone"]

    def get_readonly_fields(self, request: HttpRequest, obj: Issuer | None = None) -> Any:
        return ["prefix"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Issuer | None = None) -> bool:
        return False


class CreditGrantForm(forms.ModelForm):  # type: ignore[type-arg]
    """Credit, typed in units of the organization's currency, and in no other."""

    amount = forms.CharField(help_text="In units of the organization's currency, such as 1250.50.")

    class Meta:
        model = CreditGrant
        fields = ("organization", "source", "priority", "expires_at", "note")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        currency = cleaned["organization"].currency
        try:
            amount_minor = parse_minor(cleaned["amount"], currency)
        except ValueError as error:
            self.add_error("amount", str(error))
            return cleaned
        if amount_minor <= 0:
            self.add_error("amount", "Credit is above zero.")
        self.instance.currency, self.instance.amount_minor = currency, amount_minor
        return cleaned


@admin.register(CreditGrant)
class CreditGrantAdmin(AuditedAdmin[CreditGrant]):
    """Credit is added, and drawn down by invoices; it is never changed."""

    form = CreditGrantForm
    fields = ("organization", "amount", "source", "priority", "expires_at", "note")
    list_display = ["organization", "source", "currency", "amount", "left", "expires_at"]
    list_select_related = ["organization"]
    list_filter = ["source", "currency"]
    raw_id_fields = ["organization"]

    @admin.display(description="amount", ordering="amount_minor")
    def amount(self, grant: CreditGrant) -> str:
        return format_minor(grant.amount_minor, grant.currency)

    @admin.display(description="left")
    def left(self, grant: CreditGrant) -> str:
        return format_minor(credit.remaining(grant), grant.currency)

    def has_change_permission(self, request: HttpRequest, obj: CreditGrant | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: CreditGrant | None = None) -> bool:
        return False
