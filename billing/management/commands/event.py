"""`manage.py event list|show|replay`: what organizations were told of, and how far it has come."""

from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils.timezone import now

from billing.notifications import event_wording, events
from billing.notifications.events import Delivery, Event, EventType
from tenants import console
from tenants.console import Row

COLUMNS = ["id", "happened_at", "organization", "type", "subject", "deliveries"]


class Command(console.NounCommand):
    help = "List events and their deliveries, and send one again."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)
        listing = verbs.add_parser("list", help="the latest first")
        listing.add_argument("--organization", metavar="SLUG")
        listing.add_argument("--type", choices=EventType.values)
        listing.add_argument(
            "--undelivered", action="store_true", help="what waits or was given up"
        )
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.show_all)
        show = verbs.add_parser("show", help="print what a webhook is sent")
        show.add_argument("id", type=int)
        show.set_defaults(act=self.show_one)
        replay = verbs.add_parser("replay", help="send events again, delivered before or not")
        replay.add_argument("id", type=int, nargs="+")
        replay.set_defaults(act=self.replay)

    def show_all(
        self,
        *,
        organization: str | None,
        type: str | None,
        undelivered: bool,
        json: bool,
        **_: Any,
    ) -> None:
        found = Event.objects.select_related("organization").prefetch_related("deliveries")
        if organization:
            found = found.filter(organization=console.find_organization(organization))
        if type:
            found = found.filter(type=type)
        if undelivered:
            found = found.filter(pk__in=events.undelivered().values("event_id"))
        rows = [_row(event) for event in self.first(found)]
        self.show(rows, as_json=json, columns=COLUMNS)

    def show_one(self, *, id: int, **_: Any) -> None:
        self.stdout.write(event_wording.payload(_find(id)).decode())

    def replay(self, *, id: list[int], **_: Any) -> None:
        for each in id:
            made = events.replay(_find(each), now(), by=console.actor())
            to = ", ".join(delivery.medium for delivery in made) or "nobody: there is no channel"
            self.stdout.write(f"event {each} goes to {to}")


def state(delivery: Delivery) -> str:
    """Return how far a delivery has come, in a few words."""
    again = "again by " if delivery.replay else ""
    if delivery.delivered_at:
        return f"{again}{delivery.medium} delivered"
    stands = "waits" if delivery.next_attempt_at else "given up"
    error = f" ({delivery.last_error})" if delivery.last_error else ""
    return f"{again}{delivery.medium} {stands}, {delivery.attempts} attempts{error}"


def _find(pk: int) -> Event:
    found = Event.objects.select_related("organization").filter(pk=pk).first()
    if found is None:
        raise CommandError(f"There is no event {pk}; `event list` shows them.")
    return found


def _row(event: Event) -> Row:
    return {
        "id": event.pk,
        "happened_at": event.happened_at.isoformat(timespec="seconds"),
        "organization": event.organization.slug,
        "type": event.type,
        "subject": event.subject,
        "deliveries": [state(delivery) for delivery in event.deliveries.all()],
    }
