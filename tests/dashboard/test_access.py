"""Who sees what: members their own organization, operators all, and nobody learns that there is another."""

import pytest
from django.test import Client
from django.urls import reverse

from billing.invoicing.exports import CONTENT_TYPES
from billing.models import Price, UsageRecord
from dashboard.urls import urlpatterns
from tenants.models import Role
from tests import booked
from tests.dashboard.conftest import Person, person
from tests.invoiced import issue, use

PAGES = ("", "budgets/", "usage/", "invoices/")


@pytest.mark.parametrize("page", PAGES)
def test_a_member_sees_each_page_of_their_organization_and_no_other(
    alice: Person, charlie: Person, page: str
) -> None:
    assert alice.status(alice.url(page)) == 200
    assert charlie.status(alice.url(page)) == 404


@pytest.mark.parametrize("page", PAGES)
def test_an_operator_sees_every_organization(olga: Person, charlie: Person, page: str) -> None:
    assert olga.status(charlie.url(page)) == 200


@pytest.mark.parametrize("page", PAGES)
def test_who_did_not_sign_in_is_asked_to_whatever_the_address(alice: Person, page: str) -> None:
    for path in (alice.url(page), f"/o/nobody/{page}"):
        answer = Client().get(path)
        assert (answer.status_code, answer.headers["location"]) == (302, f"/sign-in/?next={path}")


def test_who_may_only_use_the_administration_is_no_operator(alice: Person, charlie: Person) -> None:
    clerk = person(charlie.tenant, is_staff=True)

    assert clerk.status(charlie.url()) == 200
    assert clerk.status(alice.url()) == 404


def test_who_left_the_organization_sees_it_no_more(alice: Person) -> None:
    alice.user.memberships.all().delete()

    assert alice.status(alice.url()) == 404


def test_a_receipt_is_found_in_its_own_organization_only(
    alice: Person, charlie: Person, vlm: Price
) -> None:
    booked.spend(alice.tenant, vlm, 1)
    record = UsageRecord.objects.get(organization=alice.tenant.organization)

    assert alice.status(alice.url(f"usage/{record.pk}/")) == 200
    assert charlie.status(alice.url(f"usage/{record.pk}/")) == 404
    assert charlie.status(charlie.url(f"usage/{record.pk}/")) == 404


def test_filters_take_the_organizations_own_teams_and_keys_only(
    alice: Person, charlie: Person
) -> None:
    foreign = {"key": charlie.tenant.key.public_id}

    assert alice.status(alice.url("usage/"), key=alice.tenant.key.public_id) == 200
    assert alice.status(alice.url("usage/"), **foreign) == 404
    charlie.tenant.organization.teams.create(name="Secret", slug="secret")
    assert alice.status(alice.url("usage/"), team="secret") == 404


def test_an_invoice_is_downloaded_in_its_own_organization_only(
    alice: Person, charlie: Person, vlm: Price
) -> None:
    use(alice.tenant, vlm)
    invoice = issue(alice.tenant)

    for file in ("", *(f"{format}/" for format in CONTENT_TYPES), "lines/1/usage-csv/"):
        path = f"invoices/{invoice.pk}/{file}"
        assert charlie.status(alice.url(path)) == charlie.status(charlie.url(path)) == 404


@pytest.mark.parametrize("role", Role)
def test_only_some_roles_see_invoices_and_every_role_the_rest(
    alice: Person, vlm: Price, role: Role
) -> None:
    use(alice.tenant, vlm)
    record = UsageRecord.objects.get(organization=alice.tenant.organization)
    file = f"invoices/{issue(alice.tenant).pk}/csv/"
    dana = person(alice.tenant, role=role)
    expected = 200 if role in (Role.OWNER, Role.ADMIN, Role.BILLING) else 403

    for page in ("", "budgets/", "usage/", f"usage/{record.pk}/"):
        assert dana.status(dana.url(page)) == 200
    assert dana.status(dana.url("invoices/")) == dana.status(dana.url(file)) == expected
    assert (dana.url("invoices/") in dana.read()) == (expected == 200)


def test_who_may_not_see_invoices_is_told_why_and_whom_to_ask(alice: Person) -> None:
    clerk = person(alice.tenant, role=Role.BILLING)
    person(alice.tenant, role=Role.ADMIN, is_active=False, first_name="Gone")
    viewer = person(alice.tenant, role=Role.VIEWER)
    page = viewer.client.get(viewer.url("invoices/")).content.decode()

    assert "You are here as: Viewer" in page
    askable = sorted([alice.user.username, clerk.user.username])
    assert f"<strong>{', '.join(askable)}</strong>" in page
    viewer.client.post("/language/", {"language": "zh-hant"})
    assert "檢視者" in viewer.client.get(viewer.url("invoices/")).content.decode()


def test_a_role_counts_in_its_own_organization_only(alice: Person, charlie: Person) -> None:
    charlie.user.memberships.create(organization=alice.tenant.organization, role=Role.VIEWER)

    assert charlie.status(charlie.url("invoices/")) == 200
    assert charlie.status(alice.url("invoices/")) == 403


def test_every_address_of_an_organization_is_guarded(
    alice: Person, charlie: Person, vlm: Price
) -> None:
    """Whatever is added to the addresses must come by here."""
    use(alice.tenant, vlm)
    record = UsageRecord.objects.get(organization=alice.tenant.organization)
    known = {"slug": alice.tenant.organization.slug, "pk": issue(alice.tenant).pk, "format": "csv"}
    known |= {"request_id": record.pk, "line": 1}
    below = [route for route in urlpatterns if str(route.pattern).startswith("o/")]

    assert len(below) > 5
    for route in below:
        words = {name: known[name] for name in route.pattern.converters}
        path = reverse(f"dashboard:{route.name}", kwargs=words)
        assert (alice.status(path), charlie.status(path)) == (200, 404)
        assert Client().get(path).headers["location"].startswith("/sign-in/")


def test_the_pages_name_nobody_else(alice: Person, charlie: Person, vlm: Price) -> None:
    booked.spend(charlie.tenant, vlm, 1)

    for page in PAGES:
        assert charlie.tenant.organization.slug not in alice.read(page)


def test_one_organization_is_gone_to_at_once(alice: Person) -> None:
    assert alice.client.get("/").headers["location"] == alice.url()


def test_several_are_chosen_from(alice: Person, charlie: Person) -> None:
    alice.user.memberships.create(organization=charlie.tenant.organization)

    page = alice.client.get("/").content.decode()
    assert alice.url() in page
    assert charlie.url() in page


def test_an_operator_searches_among_all(olga: Person, charlie: Person) -> None:
    page = olga.client.get("/", {"q": charlie.tenant.organization.name.upper()}).content.decode()

    assert charlie.url() in page
    assert olga.url() not in page


def test_who_belongs_nowhere_is_told_so(alice: Person) -> None:
    stranger = person(alice.tenant, role=None)

    page = stranger.client.get("/")
    assert page.status_code == 200
    assert "belong to no organization" in page.content.decode()
