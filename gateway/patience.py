"""A timeout for waits that come again and again: thousands of times in a stream."""

import asyncio
from types import TracebackType
from typing import Self


class Patience:
    """`asyncio.timeout` for the waits of one task, one after the other: `with patience.of(5): await …`.

    Raises TimeoutError. One timer serves them all: it is not moved for each wait, it looks at the clock when it
    fires and sleeps on. That is a tenth of what a new timeout for each wait costs. Waits are not nested.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = 0.0
        self._timeout_s_max = float("inf")
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._cancelling = 0
        self._is_over = False

    def of(self, timeout_s: float) -> Self:
        """Say how long the next wait may be."""
        self._timeout_s = min(timeout_s, self._timeout_s_max)
        return self

    def hurry(self, timeout_s: float) -> None:
        """Let no wait last longer than this, from now on: neither the one that is under way nor those that follow."""
        self._timeout_s_max = timeout_s
        if self._task is not None:
            self._until = min(self._until, self._loop.time() + timeout_s)
            self._set_timer()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None, "only a task can wait"
        self._cancelling = self._task.cancelling()
        self._is_over = False
        self._until = self._loop.time() + self._timeout_s
        self._set_timer()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if not self._is_over or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _set_timer(self) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._until:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._until, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits; the next wait sets a timer
        if self._loop.time() < self._until:
            self._set_timer()
        else:
            self._is_over = True
            self._task.cancel()
