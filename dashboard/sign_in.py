"""Signing in: Django's own, with a wait after too many failures. A name that nobody has costs as much time as one."""

from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard import attempts


class SignInForm(AuthenticationForm):
    """Name and password. Says the same of an unknown name, a wrong password and somebody who may not sign in."""

    error_messages = {
        "invalid_login": gettext_lazy("This name and password do not belong together."),
        "inactive": gettext_lazy("This name and password do not belong together."),
    }

    def clean(self) -> dict[str, Any]:
        username = self.cleaned_data.get("username") or ""
        address = self.request.META.get("REMOTE_ADDR") or "" if self.request else ""
        if not attempts.begin(username, address):
            raise forms.ValidationError(
                _("Too many attempts. Try again in %(minutes)s minutes."),
                params={"minutes": attempts.WAIT_S // 60},
            )
        cleaned = super().clean()
        if isinstance(self.get_user(), User):
            attempts.forget(username, address)
        return cleaned
