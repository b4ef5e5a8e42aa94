"""The pages. Each begins at the organization that its person may see; any other is not found."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.views import LoginView, LogoutView
from django.db.models import Q
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
)
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.utils.cache import add_never_cache_headers
from django.utils.timezone import now
from django.views.generic.base import View

from billing.invoicing import exports
from billing.invoicing.invoices import Invoice
from billing.models import UsageStatus
from billing.money import format_pico
from billing.periods import Period
from dashboard import access, gauges, invoices, months, overview, reading, records, shares
from dashboard.access import Visit, is_operator, organizations_of
from dashboard.attempts import WAIT_S
from dashboard.charts import Chart, Column, chart
from dashboard.figures import amount, compact, grouped
from dashboard.overview import KINDS, Overview
from dashboard.sign_in import SignInForm
from tenants.models import Organization

ORGANIZATIONS_MAX = 200
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class Guarded(View):
    """A page that no cache keeps, and that loads nothing from elsewhere and runs no script."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        answer = super().dispatch(request, *args, **kwargs)
        answer.headers["Content-Security-Policy"] = CONTENT_POLICY
        add_never_cache_headers(answer)
        return answer


class SignIn(Guarded, LoginView):
    template_name = "dashboard/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        answer = super().form_invalid(form)
        if isinstance(form, SignInForm) and form.must_wait:
            answer.status_code = 429
            answer.headers["Retry-After"] = str(WAIT_S)
        return answer


class SignOut(LogoutView):
    http_method_names = ["post", "options"]


class Home(LoginRequiredMixin, Guarded):
    """The organizations of the person, or at once the only one."""

    def get(self, request: HttpRequest) -> HttpResponse:
        mine = organizations_of(request.user)
        search = request.GET.get("q", "").strip()
        found = mine.filter(Q(name__icontains=search) | Q(slug__icontains=search))
        shown = list(found[: ORGANIZATIONS_MAX + 1])
        if len(shown) == 1 and not search:
            return redirect("dashboard:overview", slug=shown[0].slug)
        context = {
            "organizations": shown[:ORGANIZATIONS_MAX],
            "is_cut": len(shown) > ORGANIZATIONS_MAX,
            "is_operator": is_operator(request.user),
            "search": search,
        }
        return TemplateResponse(request, "dashboard/home.html", context)


class OrganizationPage(LoginRequiredMixin, Guarded):
    """A page of one organization, in its currency and its time zone."""

    visit: Visit
    organization: Organization
    zone: ZoneInfo

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        if request.user.is_authenticated:
            visit = access.visit(request.user, kwargs["slug"])
            if visit is None:
                raise Http404("There is no such organization.")
            self.visit, self.organization = visit, visit.organization
            self.zone = ZoneInfo(self.organization.timezone)

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        try:
            with reading.bounded():
                answer = self.answer()
                return answer.render() if isinstance(answer, TemplateResponse) else answer
        except reading.TooMuch:
            return self.too_much()

    def answer(self) -> HttpResponseBase:
        """Read what the page shows. Each statement has its time; see `too_much`."""
        raise NotImplementedError

    def too_much(self) -> TemplateResponse:
        return self.show("too_much", status=503)

    def show(self, page: str, status: int = 200, **context: Any) -> TemplateResponse:
        common = {
            "organization": self.organization,
            "page": page,
            "is_operator": self.visit.is_operator,
            "sees_invoices": self.visit.sees_invoices,
        }
        return TemplateResponse(
            self.request, f"dashboard/{page}.html", common | context, status=status
        )

    def month_choices(self, at: datetime, *others: Period) -> list[str]:
        """Return the months that can be chosen, the latest first, and others that were."""
        listed = months.until(at, overview.first_bucket(self.organization), self.zone)
        return sorted({each.label(self.zone) for each in (*listed, *others)}, reverse=True)

    def chosen_month(self, text: str, at: datetime) -> Period:
        """Return the month that was asked for; not found if there is none of that name."""
        try:
            return months.chosen(text, at, self.zone)
        except (ValueError, OverflowError) as error:  # the latter: at the ends of the calendar
            raise Http404("There is no such month.") from error


class OverviewPage(OrganizationPage):
    def answer(self) -> TemplateResponse:
        at = now()
        period = self.chosen_month(self.request.GET.get("month", ""), at)
        found = overview.of_month(self.organization, period)
        return self.show(
            "overview",
            overview=found,
            month=period.label(self.zone),
            months=self.month_choices(at, period),
            is_current=at in period,
            kinds=KINDS,
            groups=[shares.drawing(group, self.organization.currency) for group in found.groups],
            amounts=amount_chart(found, self.organization.currency),
            tokens=token_chart(found),
        )


class BudgetsPage(OrganizationPage):
    def answer(self) -> TemplateResponse:
        standings = gauges.of_organization(self.organization)
        return self.show("budgets", standings=standings, at=now())


class RecordsPage(OrganizationPage):
    def answer(self) -> TemplateResponse:
        wanted = self._filter()
        after, before = self._cursor("after"), self._cursor("before")
        found = records.page(self.organization, wanted, after=after, before=before)
        return self._show(wanted, found=found)

    def too_much(self) -> TemplateResponse:
        """Keep the filter, so that it can be narrowed."""
        return self._show(self._filter(), status=503, is_too_much=True)

    def _show(self, wanted: records.Filter, **context: Any) -> TemplateResponse:
        chosen = [wanted.period] if wanted.period else []
        return self.show(
            "records",
            wanted=wanted,
            month=wanted.period and wanted.period.label(self.zone),
            months=self.month_choices(now(), *chosen),
            teams=self.organization.teams.all()[: records.CHOICES_MAX],
            keys=self.organization.keys.all()[: records.CHOICES_MAX],
            models=records.models_of(self.organization, wanted.model_name),
            statuses=UsageStatus.values,
            **context,
        )

    def _filter(self) -> records.Filter:
        """Read the filter; a team or key of somebody else is as little found as one that is not there."""
        query = self.request.GET
        month, team, key = query.get("month"), query.get("team"), query.get("key")
        status = query.get("status", "")
        if status and status not in UsageStatus.values:
            raise Http404("There is no such status.")
        return records.Filter(
            period=self.chosen_month(month, now()) if month else None,
            team=get_object_or_404(self.organization.teams, slug=team) if team else None,
            key=get_object_or_404(self.organization.keys, public_id=key) if key else None,
            model_name=query.get("model", ""),
            status=status,
        )

    def _cursor(self, name: str) -> records.Cursor | None:
        text = self.request.GET.get(name, "")
        try:
            return records.Cursor.parse(text) if text else None
        except ValueError as error:
            raise Http404("This is no place in the list.") from error


class ReceiptPage(OrganizationPage):
    def answer(self) -> TemplateResponse:
        receipt = records.receipt(self.organization, self.kwargs["request_id"])
        if receipt is None:
            raise Http404("There is no such usage record.")
        return self.show("receipt", receipt=receipt, record=receipt.record)


class InvoicePage(OrganizationPage):
    """A page of what was invoiced, which a role may not see; it says so, and whom to ask."""

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
        if self.visit.sees_invoices:
            return super().get(request, **kwargs)
        askable = access.who_sees_invoices(self.organization)
        return self.show("invoices_closed", status=403, role=self.visit.role, askable=askable)


class InvoicesPage(InvoicePage):
    def answer(self) -> TemplateResponse:
        return self.show("invoices", rows=invoices.of_organization(self.organization, now()))


class OneInvoicePage(InvoicePage):
    """Its lines, each with the usage behind it."""

    def answer(self) -> HttpResponseBase:
        invoice = self.invoice()
        return self.show("invoice", invoice=invoice, items=invoices.items(invoice))

    def invoice(self) -> Invoice:
        """Return the organization's invoice of this address; Http404 if there is none."""
        invoice = invoices.find(self.organization, self.kwargs["pk"])
        if invoice is None:
            raise Http404("There is no such invoice.")
        return invoice


class InvoiceDownload(OneInvoicePage):
    """A file, as long as it is: it is sent as it is read."""

    def answer(self) -> HttpResponseBase:
        return self.download(self.kwargs["format"])

    def download(self, format: str, line: int | None = None) -> HttpResponseBase:
        try:
            return exports.response(self.invoice(), format, line)
        except ValueError:
            raise Http404("There is no such download.") from None


class LineDownload(InvoiceDownload):
    """The usage behind a line."""

    def answer(self) -> HttpResponseBase:
        return self.download("usage-csv", self.kwargs["line"])


def amount_chart(found: Overview, currency: str) -> Chart:
    columns = [
        Column(
            day.day,
            f"{day:%Y-%m-%d}: {amount(sums.amount_pico)} {currency}",
            [("amount", sums.amount_pico)],
        )
        for day, sums in found.days
    ]
    return chart(columns, lambda pico: format_pico(pico, decimals_min=0))


def token_chart(found: Overview) -> Chart:
    columns = [
        Column(
            day.day,
            f"{day:%Y-%m-%d}: {grouped(sums.tokens)}",
            [(kind, getattr(sums, kind)) for kind in KINDS],
        )
        for day, sums in found.days
    ]
    return chart(columns, compact)
