"""Which limits count a request, and where: laid out once for a key and a model, then used by every request. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from gateway.windows import KINDS
from tenants.limits import LimitKind
from tenants.principals import LimitEntry, Principal

IN_WINDOW = (LimitKind.REQUESTS, LimitKind.TOKENS, LimitKind.IMAGES)
NO_LIMIT = -1


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks of its limits. `tokens` is its worst case; it ends within `lease_ms`."""

    request_id: UUID
    tokens: int
    images: int
    lease_ms: int

    @property
    def costs(self) -> tuple[int, int, int]:
        """Return what it takes from a window, in the order of IN_WINDOW."""
        return 1, self.tokens, self.images

    def cost(self, kind: LimitKind) -> int:
        if kind is LimitKind.TOKENS:
            return self.tokens
        return self.images if kind is LimitKind.IMAGES else 1


class Found(msgspec.Struct, frozen=True):
    """How the counts stood when a request came, and whether it was charged to them.

    `counts` has of each window the current ones and the previous ones, then of each set how many leases it has.
    """

    is_admitted: bool
    bucket: int
    elapsed_ms: int  # since the bucket began
    counts: Sequence[int]
    is_local: bool  # kept by this process alone


@dataclass(frozen=True, slots=True)
class Plan:
    """The limits over one key's requests for one model, and where they are counted.

    `places` says of each limit where its (current) count is in `Found.counts`. `ceilings` are the limits that are
    enforced: of each window for requests, tokens and images, then of each set of leases.
    """

    limits: tuple[LimitEntry, ...]
    places: tuple[int, ...]
    ceilings: tuple[int, ...]
    windows: tuple[str, ...]
    sets: tuple[str, ...]
    windows_key: str

    @property
    def must_release(self) -> bool:
        """Return whether a request must say when it has ended, and what it used."""
        return bool(self.sets)

    def admission_of(self, load: Load, window_ms: int) -> tuple[Any, ...]:
        """Return what `lua/admit.lua` takes: the number of keys, the keys, the arguments."""
        return (
            *(1 + len(self.sets), self.windows_key, *self.sets),
            *(str(load.request_id), load.tokens, load.images, load.lease_ms, window_ms),
            *(len(self.windows), *self.windows, *self.ceilings),
        )

    def release_of(self, request_id: UUID, bucket: int, correction: int) -> tuple[Any, ...]:
        """Return what `lua/release.lua` takes."""
        return (
            *(1 + len(self.sets), self.windows_key, *self.sets),
            *(str(request_id), bucket, correction, *self.windows),
        )


def lay_out(principal: Principal, model_name: str) -> Plan | None:
    """Return the plan for this key's requests for this model; None if no limit counts them."""
    over = [limit for limit in principal.limits if limit.model_name in {"", model_name}]
    if not over:
        return None
    windows = _counted(limit for limit in over if limit.kind in IN_WINDOW)
    sets = _counted(limit for limit in over if limit.kind not in IN_WINDOW)
    if not sets and any(limit.kind is LimitKind.TOKENS for limit in over):
        sets = [f"key:{principal.key_id}:*"]  # its lease says that a request is yet to be corrected
    ceilings = [NO_LIMIT] * (KINDS * len(windows) + len(sets))
    places = []
    for limit in over:
        if limit.kind in IN_WINDOW:
            at, kind = windows.index(_name(limit)), IN_WINDOW.index(limit.kind)
            slot, place = KINDS * at + kind, 2 * KINDS * at + kind
        else:
            at = sets.index(_name(limit))
            slot, place = KINDS * len(windows) + at, 2 * KINDS * len(windows) + at
        places.append(place)
        if not limit.is_shadow:
            ceilings[slot] = limit.maximum
    # The braces put all that one organization has into one slot of a cluster.
    prefix = f"tessera:{{org:{principal.organization_id}}}"
    return Plan(
        limits=tuple(over),
        places=tuple(places),
        ceilings=tuple(ceilings),
        windows=tuple(windows),
        sets=tuple(f"{prefix}:leases:{name}" for name in sets),
        windows_key=f"{prefix}:windows",
    )


def _counted(limits: Iterable[LimitEntry]) -> list[str]:
    return list(dict.fromkeys(map(_name, limits)))


def _name(limit: LimitEntry) -> str:
    """Name what the limit counts: the requests under one owner, for one model or for all."""
    return f"{limit.level}:{limit.owner_id}:{limit.model_name or '*'}"
