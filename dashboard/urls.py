"""The addresses of the pages: what belongs to an organization is below /o/<its slug>/."""

from django.urls import path
from django.views.i18n import set_language

from dashboard import views

app_name = "dashboard"

urlpatterns = [
    path("", views.Home.as_view(), name="home"),
    path("sign-in/", views.SignIn.as_view(), name="sign-in"),
    path("sign-out/", views.SignOut.as_view(), name="sign-out"),
    path("language/", set_language, name="language"),
    path("o/<slug:slug>/", views.OverviewPage.as_view(), name="overview"),
    path("o/<slug:slug>/budgets/", views.BudgetsPage.as_view(), name="budgets"),
    path("o/<slug:slug>/usage/", views.RecordsPage.as_view(), name="records"),
    path("o/<slug:slug>/usage/<uuid:request_id>/", views.ReceiptPage.as_view(), name="receipt"),
    path("o/<slug:slug>/invoices/", views.InvoicesPage.as_view(), name="invoices"),
    path("o/<slug:slug>/invoices/<int:pk>/", views.OneInvoicePage.as_view(), name="invoice"),
    path(
        "o/<slug:slug>/invoices/<int:pk>/lines/<int:line>/usage-csv/",
        views.LineDownload.as_view(),
        name="line-usage",
    ),
    path(
        "o/<slug:slug>/invoices/<int:pk>/<slug:format>/",
        views.InvoiceDownload.as_view(),
        name="download",
    ),
]
