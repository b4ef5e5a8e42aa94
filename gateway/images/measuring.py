"""All images of a request, measured; those given by URL are fetched and put in the request as bytes."""

import asyncio
from collections.abc import Sequence

from gateway.errors import InvalidImage
from gateway.images import ImageLimits
from gateway.images.data_urls import MeasuredImage, measure
from gateway.images.fetcher import Fetcher
from gateway.protocol import ImageSlot


async def measure_all(
    slots: Sequence[ImageSlot], fetcher: Fetcher, limits: ImageLimits
) -> list[MeasuredImage]:
    """Measure each image where it stands. After this every slot holds a data URL of the bytes measured.

    Raises InvalidImage that names the slot; one bad image stops the fetching of the others.
    """
    if not slots:
        return []
    measured = {
        index: _measure_here(slot, limits) for index, slot in enumerate(slots) if slot.is_data_url
    }
    remote = [index for index in range(len(slots)) if index not in measured]
    if remote:
        measured |= await _fetch(slots, remote, fetcher)
    for index, slot in enumerate(slots):
        if measured[index].data_url is not slot.url:
            slot.replace(bytes(measured[index].data_url))
    return [measured[index] for index in range(len(slots))]


async def _fetch(
    slots: Sequence[ImageSlot], remote: Sequence[int], fetcher: Fetcher
) -> dict[int, MeasuredImage]:
    """Fetch each URL once, however often the conversation repeats it."""
    urls = {slots[index].url: slots[index] for index in remote}
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {
                url: group.create_task(_measure_there(slot, fetcher)) for url, slot in urls.items()
            }
    except* InvalidImage as errors:
        raise errors.exceptions[0] from None
    return {index: tasks[slots[index].url].result() for index in remote}


def _measure_here(slot: ImageSlot, limits: ImageLimits) -> MeasuredImage:
    try:
        return measure(slot.url, limits)
    except InvalidImage as error:
        error.param = slot.param
        raise


async def _measure_there(slot: ImageSlot, fetcher: Fetcher) -> MeasuredImage:
    try:
        return await fetcher.fetch(bytes(slot.url))
    except InvalidImage as error:
        error.param = slot.param
        raise
