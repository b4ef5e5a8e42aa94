"""Downloads as a browser gets them: over the asynchronous server, piece by piece."""

from typing import Any, NamedTuple

from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.test import AsyncClient


class Download(NamedTuple):
    status: int
    name: str
    type: str
    pieces: list[bytes]

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


async def _fetch(user: User, path: str) -> Download:
    client = AsyncClient()
    await client.aforce_login(user)
    answer: Any = await client.get(path)
    if not answer.streaming:
        return Download(answer.status_code, "", "", [answer.content])
    name = answer.headers["content-disposition"].partition("filename=")[2].strip('"')
    pieces = [piece async for piece in answer]
    return Download(answer.status_code, name, answer.headers["content-type"], pieces)


def fetch(user: User, path: str) -> Download:
    return async_to_sync(_fetch)(user, path)  # the views run in this thread
