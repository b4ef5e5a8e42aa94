"""GET /metrics, for Prometheus: open only with a token of its own, and not there at all without one."""

import hmac

from django.conf import settings
from django.db import OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from billing.metrics import Books


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with the state of the books; 404 without TESSERA_METRICS_TOKEN, 401 to whoever lacks it."""
    if not settings.METRICS_TOKEN:
        raise Http404
    expected = f"Bearer {settings.METRICS_TOKEN}".encode()
    if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected):
        return HttpResponse(status=401, headers={"www-authenticate": "Bearer"})
    try:
        body = generate_latest(Books())
    except OperationalError:
        return HttpResponse("the database does not answer\n", status=503, content_type="text/plain")
    return HttpResponse(
        body, content_type=CONTENT_TYPE_PLAIN_0_0_4, headers={"cache-control": "no-store"}
    )
