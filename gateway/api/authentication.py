"""Who is calling: a bearer key, resolved to a principal."""

from typing import NoReturn

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from billing.batcher import StoreUnavailable
from gateway.api.requests import DataPlaneRequest
from gateway.errors import Forbidden, GatewayError, MeteringUnavailable, Unauthenticated
from tenants.principals import Miss, Principal, Refusal

REFUSALS: dict[Refusal, tuple[type[GatewayError], str]] = {
    Refusal.INVALID: (Unauthenticated, "Incorrect API key provided."),
    Refusal.EXPIRED: (Unauthenticated, "This API key has expired."),
    Refusal.ORGANIZATION_SUSPENDED: (Forbidden, "This organization is suspended."),
    Refusal.TEAM_SUSPENDED: (Forbidden, "This team is suspended."),
}


class KeyAuthentication(BaseAuthentication):
    """Hands Django REST framework the principal that `resolve` has put on the request. It never waits."""

    def authenticate(self, request: Request) -> tuple[Principal, None]:
        assert isinstance(request._request, DataPlaneRequest)
        principal = request._request.principal
        assert principal is not None, "resolve() comes first"
        return principal, None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


async def resolve(request: DataPlaneRequest) -> None:
    """Put the caller's principal on the request; only a key that the cache does not know waits for it.

    Raises Unauthenticated, Forbidden; MeteringUnavailable if keys cannot be looked up.
    """
    answer = request.plane.principals.get(bearer(request))
    if isinstance(answer, Miss):
        try:
            answer = await request.plane.resolve(answer)
        except StoreUnavailable as error:
            raise MeteringUnavailable(
                "Keys cannot be checked now. Try again shortly.", headers={"retry-after": "1"}
            ) from error
    if isinstance(answer, Refusal):
        _refuse(answer)
    request.principal = answer


def bearer(request: DataPlaneRequest) -> str:
    """Return the key that the request was sent with. Raises Unauthenticated."""
    given = request.META.get("HTTP_AUTHORIZATION")
    if given is None:
        raise Unauthenticated(
            "You didn't provide an API key. Send it as: Authorization: Bearer YOUR_KEY.",
            code="missing_api_key",
        )
    scheme, _, key = given.partition(" ")
    if scheme.lower() != "bearer":
        _refuse(Refusal.INVALID)
    return str(key.strip())


def _refuse(refusal: Refusal) -> NoReturn:
    error, message = REFUSALS[refusal]
    raise error(message, code=refusal.code)
