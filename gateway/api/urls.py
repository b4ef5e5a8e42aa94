"""Every path of the data plane. What is not here is a 404, before anything else happens."""

from django.urls import URLPattern, path, re_path

from gateway.api.chat import ChatCompletionsView
from gateway.api.me import MeView
from gateway.api.models import ModelsView, ModelView
from gateway.api.views import health, unknown

PREFIXES = ("v1", "api/models")  # the second is the seed's base URL
CHAT_PATHS = tuple(f"/{prefix}/chat/completions" for prefix in PREFIXES)


def _under(prefix: str) -> list[URLPattern]:
    # The seed's SDK asks GET {base}/models, and its base already ends in /models.
    return [
        path(f"{prefix}/chat/completions", ChatCompletionsView.as_view()),
        path(f"{prefix}/me", MeView.as_view()),
        path(f"{prefix}/models", ModelsView.as_view()),
        path(f"{prefix}/models/<path:name>", ModelView.as_view()),
    ]


urlpatterns = [
    *(pattern for prefix in PREFIXES for pattern in _under(prefix)),
    path("healthz", health),
    re_path(r"^", unknown),
]
