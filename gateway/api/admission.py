"""A chat request before its limits: what it asks of them, and what its answer says of them."""

from gateway.api.requests import DataPlaneRequest
from gateway.errors import RateLimited
from gateway.limit_plans import IN_WINDOW, Load
from gateway.limits import Admission, Standing
from gateway.relay import Job
from tenants.limits import LimitKind
from tenants.principals import Principal

# What a request may take beside its backend's time: the hold, the settling, a last slow write.
LEASE_MARGIN_S = 60
NAMES = {
    kind: tuple(f"x-ratelimit-{word}-{kind.value}" for word in ("limit", "remaining", "reset"))
    for kind in IN_WINDOW
}


async def admit(request: DataPlaneRequest, job: Job) -> Admission:
    """Charge the request its worst case; put on the answer, whatever it will be, what its limits leave.

    Whoever gets the admission enters it, so that it is given back. Raises RateLimited.
    """
    load = Load(
        request_id=job.request_id,
        tokens=job.prompt.text_upper_bound + job.prompt.image_upper_bound + job.out_max,
        images=len(job.canvases),
        lease_ms=(job.route.backend.total_timeout_s + LEASE_MARGIN_S) * 1000,
    )
    admission = await request.plane.limiter.admit(job.principal, job.model.name, load)
    request.answer_headers |= headers(admission) | shadows(admission)
    if not admission.is_admitted:
        raise refusal(admission.refusal, job.principal)
    return admission


async def tell_limits(request: DataPlaneRequest) -> None:
    """Put the limits over all models on an answer that no limit was asked for: an error before, a list, an account."""
    principal = request.principal
    if principal is not None and principal.limits and not request.answer_headers:
        request.answer_headers |= headers(await request.plane.limiter.glance(principal))


def headers(admission: Admission) -> dict[str, str]:
    """Return OpenAI's x-ratelimit-* headers, of each kind the tightest limit, and one that says where it is kept."""
    found: dict[str, str] = {}
    if not admission.standings:
        return found
    enforced = admission.enforced
    for kind, (limit, remaining, reset) in NAMES.items():
        of_kind = [each for each in enforced if each.limit.kind is kind]
        if of_kind:
            tightest = min(of_kind, key=lambda each: (each.remaining, each.share))
            found[limit] = str(tightest.share)
            found[remaining] = str(tightest.remaining)
            found[reset] = duration(tightest.reset_ms)
    if admission.is_degraded:
        found["x-tessera-degraded"] = "limits"
    return found


def shadows(admission: Admission) -> dict[str, str]:
    """Return the header that names the shadow limits which would have refused the request."""
    named = [f"{each.limit.level} {each.limit.kind.value}" for each in admission.shadow_limited]
    return {"x-tessera-shadow-limited": ", ".join(named)} if named else {}


def refusal(standing: Standing, principal: Principal) -> RateLimited:
    """Say which limit of whom refuses, and when to come back."""
    limit = standing.limit
    kind = "tokens" if limit.kind is LimitKind.TOKENS else "requests"
    wait_ms = standing.wait_ms
    if wait_ms is None:
        return RateLimited(
            f"This request is too large for the limit of {_whose(standing, principal)}: "
            f"{limit.maximum} {limit.kind.label}, requested {standing.cost}.",
            type=kind,
            headers={"x-should-retry": "false"},
        )
    return RateLimited(
        f"Rate limit reached for {_whose(standing, principal)}: limit {standing.share} "
        f"{limit.kind.label}, used {standing.used}, requested {standing.cost}. "
        f"Try again in {duration(wait_ms)}.",
        type=kind,
        headers={"retry-after": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)},
    )


def duration(ms: int) -> str:
    """Write milliseconds as OpenAI does: 20ms, 7.25s, 1m30.5s."""
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds


def _whose(standing: Standing, principal: Principal) -> str:
    limit = standing.limit
    name = {
        "organization": principal.organization_slug,
        "team": principal.team_slug,
        "key": principal.key_name,
    }[limit.level]
    of_model = f" for the model {limit.model_name!r}" if limit.model_name else ""
    return f"the {limit.level} {name!r}{of_model}"
