from django.apps import AppConfig


class DashboardConfig(AppConfig):
    name = "dashboard"

    def ready(self) -> None:
        from django.contrib import admin

        from dashboard.sign_in import AdminSignInForm

        admin.site.login_form = AdminSignInForm
