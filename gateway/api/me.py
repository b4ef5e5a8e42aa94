"""GET me: what the caller's key has spent, holds and has left."""

from functools import partial
from typing import Any

import msgspec
from django.http import HttpResponseBase

from billing import account
from billing.account import Account, UsualImage
from billing.batcher import StoreUnavailable
from billing.budgets import BudgetWindow
from billing.models import Hold
from billing.money import format_micro, format_pico
from gateway.api.admission import headers
from gateway.api.answers import JSONAnswer
from gateway.api.requests import DataPlaneRequest
from gateway.api.views import DataPlaneView
from gateway.errors import MeteringUnavailable
from gateway.limits import Admission, Standing
from tenants.principals import Principal


class MeView(DataPlaneView):
    """Answer with the key's own account. Amounts are exact decimal strings in units of the currency."""

    async def get(self, request: DataPlaneRequest) -> HttpResponseBase:
        try:
            found = await request.plane.reader.read(
                partial(account.of_key, self.principal, request.received_at)
            )
        except StoreUnavailable as error:
            raise MeteringUnavailable(
                "The account cannot be read now. Try again shortly.", headers={"retry-after": "1"}
            ) from error
        limiter = request.plane.limiter
        standings = await limiter.look(self.principal)
        over_all = [each for each in standings if not each.limit.model_name]
        request.answer_headers |= headers(Admission(over_all, is_degraded=limiter.is_degraded))
        body = {
            "object": "me",
            "as_of": request.received_at,
            **_identity(self.principal),
            **_as_json(found),
            "limits": [_limit(each) for each in standings],
        }
        answer = JSONAnswer(msgspec.json.encode(body))
        answer["cache-control"] = "no-store"
        return answer


def _identity(principal: Principal) -> dict[str, Any]:
    return {
        "organization": {
            "slug": principal.organization_slug,
            "name": principal.organization_name,
            "timezone": principal.timezone,
        },
        "team": {"slug": principal.team_slug, "name": principal.team_name},
        "key": {
            "public_id": principal.public_id,
            "name": principal.key_name,
            "expires_at": principal.expires_at,
        },
        "currency": principal.currency,
    }


def _limit(standing: Standing) -> dict[str, Any]:
    """Return one limit as it stands now. Requests, tokens and images are per minute, the others at once."""
    limit = standing.limit
    return {
        "level": limit.level,
        "kind": limit.kind.value,
        "model": limit.model_name or None,
        "limit": standing.share,
        "used": standing.used,
        "left": standing.remaining,
        "is_shadow": limit.is_shadow,
    }


def _as_json(found: Account) -> dict[str, Any]:
    image = found.usual_image
    return {
        "budgets": [_budget(window, image) for window in found.windows],
        "holds": {
            "count": found.holds.count,
            "amount": format_pico(found.holds.amount_pico),
            "tokens": found.holds.tokens,
            "next_to_expire": [_hold(hold) for hold in found.holds.next_to_expire],
        },
        "usual_image": _usual_image(image) if image else None,
    }


def _budget(window: BudgetWindow, image: UsualImage | None) -> dict[str, Any]:
    budget = window.budget
    return {
        "id": budget.pk,
        "name": budget.name,
        "level": budget.level,
        "period": budget.period,
        "starts_at": None if window.ends_at is None else window.starts_at,
        "resets_at": window.ends_at,
        "money": _money(window, image),
        "tokens": _tokens(window, image),
    }


def _money(window: BudgetWindow, image: UsualImage | None) -> dict[str, Any] | None:
    budget, left_pico = window.budget, window.left_pico
    if budget.limit_micro is None or left_pico is None:
        return None
    return {
        "limit": format_micro(budget.limit_micro),
        "spent": format_pico(int(window.spent_pico)),
        "held": format_pico(int(window.held_pico)),
        "left": format_pico(left_pico),
        "left_in_usual_images": _times(left_pico, image.amount_pico if image else None),
        "hold_max": None if budget.hold_micro_max is None else format_micro(budget.hold_micro_max),
    }


def _tokens(window: BudgetWindow, image: UsualImage | None) -> dict[str, Any] | None:
    if window.left_tokens is None:
        return None
    return {
        "limit": window.budget.limit_tokens,
        "spent": window.spent_tokens,
        "held": window.held_tokens,
        "left": window.left_tokens,
        "left_in_usual_images": _times(window.left_tokens, image.tokens if image else None),
        "hold_max": window.budget.hold_tokens_max,
    }


def _times(left: int, each: int | None) -> int | None:
    """Return how often it fits; None where that is not known or nothing is charged."""
    return left // each if each else None


def _hold(hold: Hold) -> dict[str, Any]:
    return {
        "request_id": hold.request_id,
        "model": hold.model_name,
        "amount": format_pico(hold.amount_pico),
        "tokens": hold.tokens_held,
        "held_at": hold.held_at,
        "expires_at": hold.expires_at,
    }


def _usual_image(image: UsualImage) -> dict[str, Any]:
    amount_pico = image.amount_pico
    return {
        "tokens": image.tokens,
        "amount": None if amount_pico is None else format_pico(amount_pico),
        "model": image.model_name,
        "requests": image.records,
        "reckoned": (
            f"The median of the image tokens billed per image in this key's last {image.records} requests with "
            f"images, at the price of {image.model_name} now. Text and answer come on top."
        ),
    }
