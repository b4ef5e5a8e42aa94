"""Signing in: Django's own, with a wait after too many failures. A name that nobody has costs as much time as one."""

from typing import Any

from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.attempts import ATTEMPTS, WAIT_S

TOO_MANY = "too_many"


class WaitingForm(AuthenticationForm):
    """Name and password, of which nobody may try too many."""

    def clean(self) -> dict[str, Any]:
        username = self.cleaned_data.get("username") or ""
        address = self.request.META.get("REMOTE_ADDR") or "" if self.request else ""
        if not ATTEMPTS.begin(username, address):
            raise ValidationError(
                _("Too many attempts. Try again in %(minutes)s minutes."),
                code=TOO_MANY,
                params={"minutes": WAIT_S // 60},
            )
        cleaned = super().clean()
        if isinstance(self.get_user(), User):
            ATTEMPTS.forget(username, address)
        return cleaned

    @property
    def must_wait(self) -> bool:
        return self.has_error(NON_FIELD_ERRORS, TOO_MANY)


class SignInForm(WaitingForm):
    """Says the same of an unknown name, a wrong password and somebody who may not sign in."""

    error_messages = {
        "invalid_login": gettext_lazy("This name and password do not belong together."),
        "inactive": gettext_lazy("This name and password do not belong together."),
    }


class AdminSignInForm(WaitingForm, AdminAuthenticationForm):
    """The admin's own, which is another door to the same passwords."""
