"""manage.py budget set | list | change | remove"""

import argparse
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterable
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

from django.core.management.base import CommandError, CommandParser
from django.utils.timezone import now

from billing import standing
from billing.budgets import Budget, BudgetWindow, Period, default_thresholds, parse_limit
from billing.money import format_micro, format_pico
from tenants import console

LIMITS = {"money": "limit_micro", "tokens": "limit_tokens"}
CAPS = {"hold_money_max": "hold_micro_max", "hold_tokens_max": "hold_tokens_max"}
OTHERS = {"name": "name", "alert": "alert_percents", "active": "is_active"}
FIELDS = LIMITS | CAPS | OTHERS
NONE = "none"


class Command(console.NounCommand):
    help = (
        "Budgets: how much an organization, a team or a key may spend, in money, in tokens, or in "
        "both. A request is refused that could pass any budget over it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = self.verbs(parser)

        setting = verbs.add_parser("set", help="set a budget, beside those there are")
        setting.add_argument("--organization", required=True, metavar="SLUG")
        setting.add_argument("--team", metavar="SLUG", help="for this team of it only")
        setting.add_argument("--key", metavar="PUBLIC_ID", help="for this key of it only")
        setting.add_argument(
            "--per",
            choices=Period.values,
            default=Period.MONTH,
            help="in the organization's time zone; life is prepaid (default: %(default)s)",
        )
        _add_values(setting)
        setting.set_defaults(act=self.set)

        listing = verbs.add_parser("list", help="list the budgets: spent, held and left now")
        listing.add_argument("--organization", metavar="SLUG", help="of this organization only")
        listing.add_argument("--all", action="store_true", help="those that were removed, too")
        listing.add_argument("--json", action="store_true")
        listing.set_defaults(act=self.list)

        changing = verbs.add_parser("change", help="change what is given, and nothing else")
        changing.add_argument("id", type=int, metavar="ID")
        _add_values(changing)
        changing.add_argument("--active", action=BooleanOptionalAction, help="whether it holds")
        changing.set_defaults(act=self.change)

        removing = verbs.add_parser("remove", help="stop enforcing it; what it held is kept")
        removing.add_argument("id", type=int, metavar="ID")
        removing.set_defaults(act=self.remove)

    def set(self, **options: Any) -> None:
        organization = console.find_organization(options["organization"])
        budget = Budget(
            organization=organization,
            team=console.find_team(organization, options["team"]) if options["team"] else None,
            key=console.find_key(organization, options["key"]) if options["key"] else None,
            period=options["per"],
            **_values(options),
        )
        console.create(budget)
        window = standing.open_windows([budget])[budget.pk]
        self.tell(f"Set budget {budget.pk}: {_in_words(budget)} {_owner(budget)}.")
        if window.spent_tokens or window.spent_pico:
            spent = _amount(budget, int(window.spent_pico))
            self.tell(f"Spent of it already: {spent}, {window.spent_tokens} tokens.")
        for other in _beside(budget):
            self.tell(f"Budget {other.pk} stands too ({_in_words(other)}); both are enforced.")
        self.stdout.write(str(budget.pk))

    def list(self, **options: Any) -> None:
        budgets = Budget.objects.select_related("organization", "team__organization", "key")
        if options["organization"]:
            budgets = budgets.filter(
                organization=console.find_organization(options["organization"])
            )
        if not options["all"]:
            budgets = budgets.filter(is_active=True)
        found = self.first(budgets)
        windows = standing.open_windows(found)
        if options["json"]:
            rows = [_as_json(budget, windows.get(budget.pk)) for budget in found]
        else:
            rows = [row for budget in found for row in _rows(budget, windows.get(budget.pk))]
        self.show(
            rows,
            as_json=options["json"],
            columns=[
                *("id", "of", "name", "per", "unit"),
                *("limit", "spent", "held", "left", "resets", "alerts", "status"),
            ],
        )

    def change(self, **options: Any) -> None:
        budget = _find(options["id"])
        values = _values(options)
        if not values:
            raise CommandError("Say what to change (budget change --help).")
        was_active = budget.is_active
        changed = budget.change(by=console.actor(), at=now(), **values)
        verb = f"changed {', '.join(changed)}" if changed else "is so already"
        self.tell(f"Budget {budget.pk} {_owner(budget)}: {verb}. It is {_in_words(budget)}.")
        if budget.is_active and not was_active:
            self.tell("What was used while it was inactive is not counted in the open window.")

    def remove(self, **options: Any) -> None:
        budget = _find(options["id"])
        if budget.change(by=console.actor(), at=now(), is_active=False):
            self.tell(f"Budget {budget.pk} {_owner(budget)} is no longer enforced.")
        else:
            self.tell(f"Budget {budget.pk} was removed already.")


def _add_values(parser: CommandParser) -> None:
    """Add the options for what may be changed later. Those that are not given are absent."""
    for option, parse, metavar, meaning in (
        ("--money", parse_limit, "1000", "the limit, in units of the organization's currency"),
        ("--tokens", _tokens, "N", "the limit in tokens, input and output together"),
        ("--hold-money-max", parse_limit, "5", "the most that one request may set aside"),
        ("--hold-tokens-max", _tokens, "N", "the same in tokens"),
    ):
        parser.add_argument(
            option,
            type=_or_none(parse),
            default=argparse.SUPPRESS,
            metavar=metavar,
            help=f"{meaning}; {NONE} for none",
        )
    parser.add_argument("--name", default=argparse.SUPPRESS, help="what refusals call it")
    percents = ",".join(map(str, default_thresholds()))
    parser.add_argument(
        "--alert",
        type=_percents,
        default=argparse.SUPPRESS,
        metavar=percents,
        help=f"percents at which an alert is raised; {NONE} for none (at first: {percents})",
    )


def _values(options: dict[str, Any]) -> dict[str, Any]:
    given = {option: options[option] for option in FIELDS if option in options}
    if given.get("active", ...) is None:
        del given["active"]
    return {FIELDS[option]: value for option, value in given.items()}


def _or_none(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    def parse_or_none(text: str) -> int | None:
        try:
            return None if text == NONE else parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_or_none


def _tokens(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise ValueError(f"{text!r} is not a whole number of tokens.")


def _percents(text: str) -> list[int]:
    words = [] if text == NONE else text.split(",")
    if all(word.isascii() and word.isdigit() and len(word) <= 4 for word in words):
        return sorted({int(word) for word in words})
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of percents such as 50,80,100.")


def _find(pk: int) -> Budget:
    found = Budget.objects.select_related("organization", "team__organization", "key")
    budget = found.filter(pk=pk).first()
    if budget is None:
        raise CommandError(f"There is no budget {pk}; `budget list` shows them.")
    return budget


def _beside(budget: Budget) -> Iterable[Budget]:
    """Return the other active budgets of the same owner."""
    same = Budget.objects.filter(
        organization=budget.organization, team=budget.team, key=budget.key, is_active=True
    )
    return same.exclude(pk=budget.pk).select_related("organization")[: console.KNOWN_MAX]


def _owner(budget: Budget) -> str:
    return f"of {budget.level} {budget.owner}"


def _in_words(budget: Budget) -> str:
    limits = []
    if budget.limit_micro is not None:
        limits.append(f"{budget.organization.currency} {format_micro(budget.limit_micro)}")
    if budget.limit_tokens is not None:
        limits.append(f"{budget.limit_tokens} tokens")
    return f"{' and '.join(limits)} {budget.get_period_display()}"


def _amount(budget: Budget, pico: int) -> str:
    return f"{budget.organization.currency} {format_pico(pico)}"


def _rows(budget: Budget, window: BudgetWindow | None) -> Iterable[console.Row]:
    """Return one line for each unit that the budget limits."""
    shared = {
        "id": budget.pk,
        "of": f"{budget.level} {budget.owner}",
        "name": budget.name or None,
        "per": budget.period,
        "resets": _resets(budget, window),
        "alerts": ",".join(map(str, budget.alert_percents)) or None,
        "status": "active" if budget.is_active else "removed",
    }
    for unit, figures in _figures(budget, window).items():
        yield shared | {"unit": budget.organization.currency if unit == "money" else unit} | figures


def _resets(budget: Budget, window: BudgetWindow | None) -> str | None:
    if window is None or window.ends_at is None:
        return None
    zone = budget.organization.timezone
    return f"{window.ends_at.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}"


def _figures(budget: Budget, window: BudgetWindow | None) -> dict[str, console.Row]:
    """Return limit, spent, held and left in each unit that the budget limits, exactly."""
    figures: dict[str, console.Row] = {}
    if budget.limit_micro is not None:
        figures["money"] = {
            "limit": format_micro(budget.limit_micro),
            "spent": format_pico(int(window.spent_pico)) if window else None,
            "held": format_pico(int(window.held_pico)) if window else None,
            "left": format_pico(window.left_pico or 0) if window else None,
        }
    if budget.limit_tokens is not None:
        figures["tokens"] = {
            "limit": budget.limit_tokens,
            "spent": window.spent_tokens if window else None,
            "held": window.held_tokens if window else None,
            "left": window.left_tokens if window else None,
        }
    return figures


def _as_json(budget: Budget, window: BudgetWindow | None) -> console.Row:
    ends_at = window.ends_at if window else None
    caps = {"money": None, "tokens": budget.hold_tokens_max}
    return {
        "id": budget.pk,
        "name": budget.name,
        "organization": budget.organization.slug,
        "team": budget.team.slug if budget.team else None,
        "key": budget.key.public_id if budget.key else None,
        "level": budget.level,
        "per": budget.period,
        "currency": budget.organization.currency,
        **_figures(budget, window),
        "hold_max": caps | _money_cap(budget),
        "alert_percents": budget.alert_percents,
        "is_active": budget.is_active,
        "resets_at": ends_at.astimezone(UTC).isoformat() if ends_at else None,
    }


def _money_cap(budget: Budget) -> dict[str, str]:
    cap = budget.hold_micro_max
    return {} if cap is None else {"money": format_micro(cap)}
