"""GET models: what this key may use."""

from typing import Any

import msgspec
from django.http import HttpResponseBase

from gateway.api.answers import JSONAnswer
from gateway.api.requests import DataPlaneRequest
from gateway.api.views import DataPlaneView
from gateway.catalog import ModelEntry


class ModelsView(DataPlaneView):
    async def get(self, request: DataPlaneRequest) -> HttpResponseBase:
        models = request.plane.catalog.models_for(self.principal)
        return JSONAnswer(
            msgspec.json.encode({"object": "list", "data": [_as_json(model) for model in models]})
        )


class ModelView(DataPlaneView):
    async def get(self, request: DataPlaneRequest, name: str) -> HttpResponseBase:
        model = request.plane.catalog.model_for(self.principal, name)
        return JSONAnswer(msgspec.json.encode(_as_json(model)))


def _as_json(model: ModelEntry) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tessera",
        "context_tokens": model.context_tokens,
        "tokens_out_max": model.tokens_out_max,
        "images_max": model.images_max,
    }
