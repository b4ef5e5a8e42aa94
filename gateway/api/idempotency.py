"""Idempotency-Key: the same request again gets the same answer, and runs and costs once."""

from django.http import HttpResponseBase

from billing.batcher import StoreUnavailable
from billing.idempotency import Claim, Claimed
from gateway.api.answers import JSONAnswer
from gateway.api.authentication import bearer
from gateway.api.requests import DataPlaneRequest
from gateway.errors import IdempotencyConflict, InvalidRequest, MeteringUnavailable


def claim_of(request: DataPlaneRequest, body: bytes) -> Claim | None:
    """Return the claim that the request makes, if it has an Idempotency-Key. Raises InvalidRequest."""
    key = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    try:
        return Claim.of(key, body, bearer(request))
    except ValueError as error:
        raise InvalidRequest(
            f"The Idempotency-Key is not usable: {error}.", code="invalid_idempotency_key"
        ) from None


async def replay(
    request: DataPlaneRequest, claimed: Claimed, claim: Claim | None, *, is_stream: bool
) -> HttpResponseBase:
    """Answer a request whose key is taken: with the kept answer, or with a conflict."""
    assert claim is not None
    if not claimed.is_same_body:
        raise IdempotencyConflict(
            "This Idempotency-Key was used with another body.", code="idempotency_key_reused"
        )
    try:
        sealed = await request.plane.kept_answer(claimed.claimed_by)
    except StoreUnavailable as error:
        raise MeteringUnavailable("The kept answer cannot be looked up now.") from error
    if sealed is None:
        raise IdempotencyConflict(
            "The first request with this Idempotency-Key is still running.",
            code="idempotency_in_progress",
            headers={"retry-after": "1"},
        )
    answer = JSONAnswer(claim.open(sealed))
    if is_stream:
        answer["content-type"] = "text/event-stream"
    answer["idempotent-replayed"] = "true"
    answer["x-original-request-id"] = str(claimed.claimed_by)
    return answer
