from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from pytest_django import DjangoAssertNumQueries

from tenants import keys, principals
from tenants.models import ApiKey, Team
from tenants.principals import Limits, Miss, Principal, PrincipalCache, Refusal, Resolved
from tests.tenants.conftest import NOON, Clock, Mint

LIMITS = Limits(principals_max=2, refusals_max=2, refusal_ttl_s=10, unconfirmed_s_max=5)
UNKNOWN = keys.mint()


@pytest.fixture
def cache(clock: Clock) -> PrincipalCache:
    cache = PrincipalCache(settings.KEY_PEPPER, LIMITS, wall=clock.wall, steady=clock.steady)
    cache.confirm(1, clock.steady_s)
    return cache


@pytest.fixture
def ask(cache: PrincipalCache) -> Callable[[str], Principal | Refusal]:
    """Resolve as the door does: from the cache, or by a load."""

    def ask(text: str) -> Principal | Refusal:
        answer = cache.get(text)
        if isinstance(answer, Miss):
            return cache.put(answer, principals.load([answer.digest])[answer.digest])
        return answer

    return ask


Ask = Callable[[str], Principal | Refusal]


def principal(key_id: int) -> Principal:
    return Principal(
        organization_id=1,
        team_id=1,
        key_id=key_id,
        public_id="AbCd1234",
        digest=b"",
        organization_slug="acme",
        organization_name="Acme",
        team_slug="research",
        team_name="Research",
        key_name="laptop",
        currency="TWD",
        timezone="Asia/Taipei",
        bills_aborted="delivered",
        bills_failed="nothing",
        allowed_models=None,
        expires_at=None,
    )


def put(cache: PrincipalCache, text: str, outcome: Principal | Refusal) -> None:
    miss = cache.get(text)
    assert isinstance(miss, Miss)
    cache.put(miss, Resolved(outcome))


def test_a_key_resolves_to_its_organization_team_and_key(mint: Mint, ask: Ask) -> None:
    key, raw = mint()

    found = ask(raw.secret)

    assert isinstance(found, Principal)
    assert (found.organization_id, found.team_id, found.key_id) == (
        key.organization_id,
        key.team_id,
        key.pk,
    )
    assert (found.organization_slug, found.team_slug) == ("acme", "research")
    assert (found.currency, found.timezone) == ("TWD", "Asia/Taipei")


def test_a_warm_principal_costs_no_query(
    mint: Mint, ask: Ask, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    _, raw = mint()
    with django_assert_num_queries(1):
        cold = ask(raw.secret)

    with django_assert_num_queries(0):
        warm = [ask(raw.secret), ask(raw.secret)]

    assert warm == [cold, cold]


@pytest.mark.django_db
def test_junk_costs_no_query(ask: Ask, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(0):
        for junk in ("", "tsr_", "é" * keys.LENGTH, "x" * 10_000, "' OR '1'='1"):
            assert ask(junk) is Refusal.INVALID


@pytest.mark.django_db
def test_an_unknown_key_is_asked_for_once_in_a_while(
    ask: Ask, clock: Clock, cache: PrincipalCache, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(1):
        assert [ask(UNKNOWN.secret), ask(UNKNOWN.secret)] == [Refusal.INVALID] * 2

    clock.advance(LIMITS.refusal_ttl_s)
    cache.confirm(1, clock.steady_s)
    assert isinstance(cache.get(UNKNOWN.secret), Miss)


def test_a_batch_is_one_query(
    mint: Mint, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    raws = [mint()[1] for _ in range(5)] + [UNKNOWN]
    digests = [keys.digest(raw, settings.KEY_PEPPER) for raw in raws]

    with django_assert_num_queries(1):
        found = principals.load(digests)

    assert set(found) == set(digests)
    assert [isinstance(found[digest].outcome, Principal) for digest in digests] == [True] * 5 + [
        False
    ]


def suspend_organization(key: ApiKey) -> None:
    key.organization.suspend(by="console:test", at=NOON)


def suspend_team(key: ApiKey) -> None:
    key.team.suspend(by="console:test", at=NOON)


def suspend_both(key: ApiKey) -> None:
    suspend_team(key)
    suspend_organization(key)


def revoke(key: ApiKey) -> None:
    key.revoke(by="console:test", at=NOON)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (revoke, Refusal.INVALID),
        (suspend_organization, Refusal.ORGANIZATION_SUSPENDED),
        (suspend_team, Refusal.TEAM_SUSPENDED),
        (suspend_both, Refusal.ORGANIZATION_SUSPENDED),
    ],
)
def test_a_change_is_answered_once_the_revision_has_moved(
    mint: Mint,
    ask: Ask,
    cache: PrincipalCache,
    clock: Clock,
    change: Callable[[ApiKey], None],
    expected: Refusal,
) -> None:
    key, raw = mint()
    cache.confirm(principals.current_revision(), clock.steady_s)
    assert isinstance(ask(raw.secret), Principal)

    change(key)
    assert isinstance(ask(raw.secret), Principal)
    cache.confirm(principals.current_revision(), clock.steady_s)

    assert ask(raw.secret) is expected


def test_what_was_read_before_a_revocation_is_not_cached_after_it(
    mint: Mint, cache: PrincipalCache, clock: Clock
) -> None:
    key, raw = mint()
    cache.confirm(principals.current_revision(), clock.steady_s)
    miss = cache.get(raw.secret)
    assert isinstance(miss, Miss)
    read = principals.load([miss.digest])[miss.digest]

    revoke(key)
    cache.confirm(principals.current_revision(), clock.steady_s)
    cache.put(miss, read)

    again = cache.get(raw.secret)
    assert isinstance(again, Miss)
    assert cache.put(again, principals.load([again.digest])[again.digest]) is Refusal.INVALID


def test_a_key_that_was_unknown_is_served_once_it_is_created(
    team: Team, mint: Mint, ask: Ask, cache: PrincipalCache, clock: Clock
) -> None:
    assert ask(UNKNOWN.secret) is Refusal.INVALID

    key, _ = mint()
    ApiKey.objects.filter(pk=key.pk).update(digest=keys.digest(UNKNOWN, settings.KEY_PEPPER))
    cache.confirm(principals.current_revision(), clock.steady_s)

    assert isinstance(ask(UNKNOWN.secret), Principal)


def test_an_expiry_that_passes_while_cached_is_honoured(
    mint: Mint, ask: Ask, clock: Clock, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    _, raw = mint(expires_at=NOON + timedelta(seconds=3))
    assert isinstance(ask(raw.secret), Principal)

    with django_assert_num_queries(0):
        clock.advance(2.9)
        assert isinstance(ask(raw.secret), Principal)
        clock.advance(0.1)
        assert ask(raw.secret) is Refusal.EXPIRED


@pytest.mark.parametrize(
    ("change", "expected"), [(revoke, Refusal.INVALID), (suspend_organization, Refusal.EXPIRED)]
)
def test_a_caller_whose_key_has_expired_learns_no_more(
    mint: Mint, ask: Ask, clock: Clock, change: Callable[[ApiKey], None], expected: Refusal
) -> None:
    key, raw = mint(expires_at=NOON + timedelta(seconds=1))
    change(key)

    clock.advance(1)

    assert ask(raw.secret) is expected


def test_a_cache_that_nobody_confirms_answers_nothing(cache: PrincipalCache, clock: Clock) -> None:
    put(cache, UNKNOWN.secret, principal(1))

    clock.advance(LIMITS.unconfirmed_s_max)
    assert cache.get(UNKNOWN.secret) == principal(1)
    clock.advance(0.1)
    assert isinstance(cache.get(UNKNOWN.secret), Miss)

    cache.confirm(1, clock.steady_s)
    assert cache.get(UNKNOWN.secret) == principal(1)


def test_a_poll_that_was_long_underway_confirms_only_its_beginning(
    cache: PrincipalCache, clock: Clock
) -> None:
    put(cache, UNKNOWN.secret, principal(1))
    sent_at = clock.steady_s

    clock.advance(LIMITS.unconfirmed_s_max + 1)
    cache.confirm(1, sent_at)

    assert isinstance(cache.get(UNKNOWN.secret), Miss)


def test_a_new_cache_answers_nothing_until_it_is_confirmed(clock: Clock) -> None:
    cache = PrincipalCache(b"pepper", LIMITS, wall=clock.wall, steady=clock.steady)

    put(cache, UNKNOWN.secret, principal(1))

    assert isinstance(cache.get(UNKNOWN.secret), Miss)


def test_a_full_cache_forgets_who_was_not_seen_for_longest(cache: PrincipalCache) -> None:
    one, two, three = (keys.mint().secret for _ in range(3))
    put(cache, one, principal(1))
    put(cache, two, principal(2))
    cache.get(one)

    put(cache, three, principal(3))

    assert isinstance(cache.get(two), Miss)
    assert [cache.get(one), cache.get(three)] == [principal(1), principal(3)]


def test_a_flood_of_unknown_keys_cannot_push_out_a_known_one(cache: PrincipalCache) -> None:
    put(cache, UNKNOWN.secret, principal(1))

    for _ in range(50):
        put(cache, keys.mint().secret, Refusal.INVALID)

    assert len(cache) == 1 + LIMITS.refusals_max
    assert cache.get(UNKNOWN.secret) == principal(1)


@pytest.mark.parametrize(
    ("organizations", "keys_own", "expected"),
    [
        ([], [], None),
        (["a", "b"], [], {"a", "b"}),
        ([], ["a"], {"a"}),
        (["a", "b"], ["b", "c"], {"b"}),
        (["a"], ["b"], set()),
    ],
)
def test_a_key_may_use_what_both_lists_allow(
    mint: Mint, ask: Ask, organizations: list[str], keys_own: list[str], expected: Any
) -> None:
    key, raw = mint(allowed_models=keys_own)
    type(key.organization).objects.update(allowed_models=organizations)

    found = ask(raw.secret)

    assert isinstance(found, Principal)
    assert found.allowed_models == expected
    assert found.may_use("b") is (expected is None or "b" in expected)
    assert not replace(found, allowed_models=frozenset()).may_use("b")


def test_neither_a_principal_nor_a_miss_shows_the_digest(cache: PrincipalCache) -> None:
    miss = cache.get(UNKNOWN.secret)
    assert isinstance(miss, Miss)

    assert "digest" not in f"{miss} {principal(1)}"
