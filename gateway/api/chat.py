"""POST chat/completions: admit, count, hold, relay, settle (design.md §3, in that order)."""

import asyncio
from contextlib import AsyncExitStack

from django.conf import settings
from django.http import HttpResponseBase

from gateway.api.answers import EventStreamAnswer, JSONAnswer
from gateway.api.requests import DataPlaneRequest
from gateway.api.views import DataPlaneView
from gateway.catalog import ModelEntry, route_for
from gateway.counting.counters import INLINE_CHARS_MAX
from gateway.counting.messages import text_chars
from gateway.errors import InvalidImage, InvalidRequest
from gateway.images import measuring
from gateway.images.data_urls import MeasuredImage
from gateway.metering import PromptCount
from gateway.protocol import ChatRequest, parse_chat
from gateway.relay import Exchange, Job, Stop


class ChatCompletionsView(DataPlaneView):
    """Answer a chat completion request, streamed or not."""

    async def post(self, request: DataPlaneRequest) -> HttpResponseBase:
        chat = parse_chat(
            await request.read_json(),
            messages_max=settings.MESSAGES_MAX,
            images_max=settings.IMAGES_MAX,
        )
        job = await self._job(request, chat)
        body = chat.upstream_body(
            model=job.route.backend_model,
            max_tokens=job.out_max // chat.n,
            running_usage=job.route.backend.kind == "vllm",
        )
        exchange = Exchange(
            job,
            books=request.plane.books,
            backends=request.plane.backends,
            limits=request.plane.relay_limits,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(exchange)
            request.when_client_leaves(lambda: exchange.stop(Stop.CLIENT_LEFT))
            await exchange.open(body)
            if chat.stream:
                return EventStreamAnswer(exchange.events(), stack.pop_all())
            return JSONAnswer(await exchange.answer())

    async def _job(self, request: DataPlaneRequest, chat: ChatRequest) -> Job:
        catalog = request.plane.catalog
        model = catalog.model_for(self.principal, chat.model)
        route = route_for(model)
        rates = catalog.rates_for(model, self.principal.currency, request.received_at)
        images = await self._measure_images(request, chat, model)
        counted = [model.counter.count_image(image.width_px, image.height_px) for image in images]
        prompt = await _count(model, chat, image_tokens=sum(count.tokens for count in counted))
        return Job(
            request_id=request.request_id,
            principal=self.principal,
            model=model,
            route=route,
            rates=rates,
            prompt=prompt,
            canvases=[
                f"{image.format} {image.width_px}x{image.height_px} {count.canvas.width_px}x{count.canvas.height_px}"
                for image, count in zip(images, counted, strict=True)
            ],
            out_max=_tokens_out_max(model, chat, prompt) * chat.n,
            stream=chat.stream,
            include_usage=chat.include_usage,
            received_at=request.received_at,
        )

    async def _measure_images(
        self, request: DataPlaneRequest, chat: ChatRequest, model: ModelEntry
    ) -> list[MeasuredImage]:
        if len(chat.images) > model.images_max:
            raise InvalidImage(
                f"The model {model.name!r} takes at most {model.images_max} images."
                if model.images_max
                else f"The model {model.name!r} does not read images.",
                code="too_many_images" if model.images_max else "invalid_image_mode",
                param=chat.images[-1].param,
            )
        return await measuring.measure_all(
            chat.images, request.plane.fetcher, request.plane.image_limits
        )


async def _count(model: ModelEntry, chat: ChatRequest, *, image_tokens: int) -> PromptCount:
    """Count the prompt; a long one in a thread, so that the others do not wait for it."""
    if text_chars(chat.prompt, chat.tools) <= INLINE_CHARS_MAX:
        return _count_here(model, chat, image_tokens)
    return await asyncio.to_thread(_count_here, model, chat, image_tokens)


def _count_here(model: ModelEntry, chat: ChatRequest, image_tokens: int) -> PromptCount:
    counter = model.counter
    return PromptCount(
        text=counter.count_prompt(chat.prompt, tools=chat.tools),
        image=image_tokens,
        text_upper_bound=counter.prompt_upper_bound(chat.prompt, tools=chat.tools),
        is_exact=counter.is_exact,
    )


def _tokens_out_max(model: ModelEntry, chat: ChatRequest, prompt: PromptCount) -> int:
    """Return how many tokens each choice may have: what the client asked for, or the model's default."""
    room = model.context_tokens - prompt.text - prompt.image
    if chat.max_tokens is None:
        if room < 1:
            raise _context_exceeded(model, prompt.text + prompt.image)
        return min(model.tokens_out_default, room)
    if chat.max_tokens > model.tokens_out_max:
        raise InvalidRequest(
            f"max_tokens must be at most {model.tokens_out_max} for the model {model.name!r}.",
            code="integer_above_max_value",
            param="max_tokens",
        )
    if chat.max_tokens > room:
        raise _context_exceeded(model, prompt.text + prompt.image + chat.max_tokens)
    return chat.max_tokens


def _context_exceeded(model: ModelEntry, tokens: int) -> InvalidRequest:
    return InvalidRequest(
        f"The model {model.name!r} has a context of {model.context_tokens} tokens; "
        f"this request needs {tokens}.",
        code="context_length_exceeded",
        param="messages",
    )
