"""What the catalog's commands share: finding and changing rows, routing, reading a credential.

A credential comes from the environment, a file or standard input, never from the command line,
where every user of the machine could read it; and nothing prints it.
"""

import getpass
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import models, transaction
from django.utils.timezone import now

from gateway.models import Backend, Model, Route
from tenants import console, credentials
from tenants.models import AuditEntry

CREDENTIAL_CHARS_MAX = 4096

# `gateway.base_url` has checked it; Django's own validator knows no host names of one label.
CHECKED_ELSEWHERE = {"base_url"}


def find_backend(name: str) -> Backend:
    found = Backend.objects.filter(name=name).first()
    if found is None:
        known = Backend.objects.values_list("name", flat=True)
        raise CommandError(f"There is no backend {name!r}. {_known(known)}")
    return found


def find_model(name: str) -> Model:
    found = Model.objects.filter(name=name).first()
    if found is None:
        known = Model.objects.values_list("name", flat=True)
        raise CommandError(f"There is no model {name!r}. {_known(known)}")
    return found


def create(subject: models.Model) -> None:
    """Validate and save the new row, and record who did it."""
    subject.full_clean(exclude=CHECKED_ELSEWHERE)
    with transaction.atomic():
        subject.save(force_insert=True)
        _record("create", subject)


def change(subject: models.Model, **values: Any) -> list[str]:
    """Set the fields that differ, and record who did it. Return their names."""
    changed = [name for name, value in values.items() if getattr(subject, name) != value]
    for name in changed:
        setattr(subject, name, values[name])
    subject.full_clean(exclude=CHECKED_ELSEWHERE)
    if changed:
        with transaction.atomic():
            subject.save(update_fields=changed)
            _record("change", subject, fields=changed)
    return changed


def remove(subject: models.Model) -> None:
    """Delete the row, and record who did it."""
    with transaction.atomic():
        _record("delete", subject)
        subject.delete()


def set_route(model: Model, backend: Backend, **values: Any) -> Route:
    """Let the backend answer for the model: create the route, or change the one there is."""
    route = model.routes.filter(backend=backend).first()
    if route is None:
        route = Route(model=model, backend=backend, **values)
        create(route)
    else:
        change(route, is_active=True, **values)
    return route


def repoint(model: Model, backend: Backend, **values: Any) -> list[Route]:
    """Let only this backend answer for the model. Return the routes that this deactivated."""
    others = model.routes.exclude(backend=backend)
    lowest = others.aggregate(lowest=models.Min("priority"))["lowest"]
    if lowest is not None:
        values = {"priority": max(0, lowest - 1)} | values
    set_route(model, backend, **values)
    displaced = list(others.filter(is_active=True).select_related("backend"))
    for route in displaced:
        change(route, is_active=False)
    return displaced


def describe_routes(routes: Iterable[Route]) -> list[str]:
    """Return each route as a person reads it: backend, its name for the model, and if it is off."""
    return [
        f"{route.backend.name}"
        + (f":{route.backend_model}" if route.backend_model else "")
        + ("" if route.is_active and route.backend.is_active else " (off)")
        for route in routes
    ]


def describe_changes(names: Iterable[str]) -> str:
    return f"changed {', '.join(names)}" if (names := list(names)) else "is so already"


def add_credential_arguments(parser: ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--credential-env", metavar="VAR", help="the variable that holds the bearer token"
    )
    group.add_argument(
        "--credential-file", metavar="FILE", help="the file that holds it; - for standard input"
    )


def read_credential(options: dict[str, Any]) -> str | None:
    """Return the credential that the options point at; None if they point at none."""
    if options["credential_env"]:
        return _checked(_from_environment(options["credential_env"]), "--credential-env")
    if options["credential_file"]:
        return _checked(_from_file(options["credential_file"]), "--credential-file")
    return None


def encrypt(secret: str) -> bytes:
    try:
        return credentials.encrypt(secret)
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


def credential_of(backend: Backend) -> str:
    """Return the stored credential in plain text, to be sent and never shown; empty for none."""
    token = bytes(backend.credential_encrypted)
    try:
        return credentials.decrypt(token) if token else ""
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


def _from_environment(name: str) -> str:
    if name not in os.environ:  # not repeated: it may be the credential itself, by mistake
        raise CommandError("--credential-env: there is no such variable; give its name.")
    return os.environ[name]


def _from_file(name: str) -> str:
    if name == "-":
        return getpass.getpass("Credential: ") if sys.stdin.isatty() else _start_of(sys.stdin)
    try:
        with Path(name).open(encoding="utf-8") as file:
            return _start_of(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise CommandError(f"--credential-file: {reason}.") from error


def _start_of(file: Any) -> str:
    return str(file.read(CREDENTIAL_CHARS_MAX + 1))


def _checked(secret: str, option: str) -> str:
    """Return it without blanks around it. It goes into a header: one word of printable ASCII."""
    secret = secret.strip()
    if not secret or len(secret) > CREDENTIAL_CHARS_MAX:
        raise CommandError(f"{option}: a credential has 1 to {CREDENTIAL_CHARS_MAX} characters.")
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise CommandError(f"{option}: a credential is one word of printable ASCII.")
    return secret


def _record(verb: str, subject: models.Model, **detail: Any) -> None:
    action = f"{subject._meta.model_name}.{verb}"
    AuditEntry.record(action, subject, by=console.actor(), at=now(), detail=detail)


def _known(names: "models.QuerySet[Any, str]") -> str:
    found = list(names[: console.KNOWN_MAX + 1])
    if not found:
        return "There is none yet: add one first."
    more = " …" if len(found) > console.KNOWN_MAX else ""
    return f"Known: {', '.join(found[: console.KNOWN_MAX])}{more}"
