"""POST chat/completions: admit, count, hold, relay, settle (design.md §3, in that order)."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from django.conf import settings
from django.http import HttpResponseBase

from billing.idempotency import Claim, KeyClaimed
from gateway.api.admission import admit
from gateway.api.answers import EventStreamAnswer, JSONAnswer
from gateway.api.idempotency import claim_of, replay
from gateway.api.requests import DataPlaneRequest
from gateway.api.views import DataPlaneView
from gateway.catalog import ModelEntry, route_for
from gateway.counting.counters import INLINE_CHARS_MAX
from gateway.counting.llama3 import TOKEN_BYTES_MAX
from gateway.counting.messages import text_chars
from gateway.errors import InvalidImage, InvalidRequest
from gateway.images import measuring
from gateway.images.data_urls import MeasuredImage
from gateway.metering import PromptCount
from gateway.protocol import ChatRequest, ImageSlot, parse_chat
from gateway.relay import Exchange, Job
from gateway.upstream import Stop


class ChatCompletionsView(DataPlaneView):
    """Answer a chat completion request, streamed or not."""

    async def post(self, request: DataPlaneRequest) -> HttpResponseBase:
        raw = await request.read_json()
        chat = parse_chat(raw, messages_max=settings.MESSAGES_MAX, images_max=settings.IMAGES_MAX)
        claim = claim_of(request, raw)
        job = await self._job(request, chat, claim)
        async with AsyncExitStack() as stack:
            admission = stack.enter_context(await admit(request, job))
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
            admission.tokens_used = lambda: exchange.tokens_used
            request.when_client_leaves(lambda: exchange.stop(Stop.CLIENT_LEFT))
            request.when_cut_off(lambda: exchange.stop(Stop.SHUT_DOWN))
            try:
                await stack.enter_async_context(exchange)
            except KeyClaimed as error:
                return await replay(request, error.claimed, claim, is_stream=chat.stream)
            await exchange.open(body)
            if chat.stream:
                return EventStreamAnswer(exchange.events(), stack.pop_all())
            return JSONAnswer(await exchange.answer())

    async def _job(self, request: DataPlaneRequest, chat: ChatRequest, claim: Claim | None) -> Job:
        catalog = request.plane.catalog
        model = catalog.model_for(self.principal, chat.model)
        route = route_for(model)
        rates = catalog.rates_for(
            model, self.principal.organization_id, self.principal.currency, request.received_at
        )
        images = ImageTokens.of(
            model,
            await measuring.measure_all(
                _slots(chat, model), request.plane.fetcher, request.plane.image_limits
            ),
        )
        prompt = await _count(model, chat, images)
        return Job(
            request_id=request.request_id,
            principal=self.principal,
            model=model,
            route=route,
            rates=rates,
            prompt=prompt,
            canvases=images.canvases,
            out_max=_tokens_out_max(model, chat, prompt) * chat.n,
            stream=chat.stream,
            include_usage=chat.include_usage,
            received_at=request.received_at,
            choices=chat.n,
            claim=claim,
        )


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """What the images of a request cost together, and why."""

    tokens: int
    upper_bound: int
    canvases: list[str]

    @classmethod
    def of(cls, model: ModelEntry, images: list[MeasuredImage]) -> Self:
        sizes = [(image.width_px, image.height_px) for image in images]
        counts = [model.counter.count_image(*size) for size in sizes]
        return cls(
            tokens=sum(count.tokens for count in counts),
            upper_bound=sum(model.counter.image_upper_bound(*size) for size in sizes),
            canvases=[
                f"{image.format} {image.width_px}x{image.height_px} "
                f"{count.canvas.width_px}x{count.canvas.height_px}"
                for image, count in zip(images, counts, strict=True)
            ],
        )


def _slots(chat: ChatRequest, model: ModelEntry) -> list[ImageSlot]:
    """Return where the images stand. Raises InvalidImage if the model does not take so many."""
    if len(chat.images) > model.images_max:
        raise InvalidImage(
            f"The model {model.name!r} takes at most {model.images_max} images."
            if model.images_max
            else f"The model {model.name!r} does not read images.",
            code="too_many_images" if model.images_max else "invalid_image_mode",
            param=chat.images[-1].param,
        )
    return chat.images


async def _count(model: ModelEntry, chat: ChatRequest, images: ImageTokens) -> PromptCount:
    """Count the prompt; a long one in a thread, so that the others do not wait for it."""
    chars = text_chars(chat.prompt, chat.tools)
    if chars > model.context_tokens * TOKEN_BYTES_MAX:
        raise _context_exceeded(model, chars // TOKEN_BYTES_MAX)
    if chars <= INLINE_CHARS_MAX:
        return _count_here(model, chat, images)
    return await asyncio.to_thread(_count_here, model, chat, images)


def _count_here(model: ModelEntry, chat: ChatRequest, images: ImageTokens) -> PromptCount:
    counter = model.counter
    text = counter.count_prompt(chat.prompt, tools=chat.tools)
    if counter.is_exact:
        return PromptCount(text, images.tokens, text, images.tokens, is_exact=True)
    bound = counter.prompt_upper_bound(chat.prompt, tools=chat.tools)
    return PromptCount(text, images.tokens, bound, images.upper_bound, is_exact=False)


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
