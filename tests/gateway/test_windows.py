from hypothesis import given
from hypothesis import strategies as st

from gateway.windows import Window, aged, fits

LENGTH_MS = 60_000
counts = st.integers(0, 10**9)
windows = st.builds(Window, counts, counts, st.integers(0, LENGTH_MS - 1), st.just(LENGTH_MS))


def later(window: Window, ms: int) -> Window:
    """Return the window so much later, if nothing more came."""
    buckets, elapsed_ms = divmod(window.elapsed_ms + ms, LENGTH_MS)
    both = {0: (window.current, window.previous), 1: (0, window.current)}.get(buckets, (0, 0))
    return Window(*both, elapsed_ms, LENGTH_MS)


@given(windows, st.integers(0, 2 * LENGTH_MS))
def test_use_only_falls_while_nothing_comes(window: Window, ms: int) -> None:
    assert later(window, ms).used <= window.used


@given(windows, counts)
def test_the_wait_is_the_shortest_after_which_there_is_room(window: Window, room: int) -> None:
    wait_ms = window.wait_ms(room)

    assert later(window, wait_ms).used <= room
    assert wait_ms == 0 or later(window, wait_ms - 1).used > room


@given(windows)
def test_nothing_is_used_after_the_reset_and_something_before(window: Window) -> None:
    assert later(window, window.reset_ms).used == 0
    assert window.reset_ms == 0 or later(window, window.reset_ms - 1).used > 0


@given(st.lists(counts, min_size=6, max_size=6))
def test_what_was_current_is_previous_in_the_next_bucket_and_gone_after(found: list[int]) -> None:
    assert aged(found, 0) == found
    assert aged(found, 1) == [0, 0, 0, *found[:3]]
    assert aged(found, 2) == aged(aged(found, 1), 1) == [0] * 6
    assert aged(found, -1) == found, "a clock that was set back forgives nothing"


@given(counts, counts, st.integers(1, 10**9), st.integers(1, 64))
def test_a_share_lets_through_no_more_than_itself_or_one_request(
    used: int, cost: int, maximum: int, processes: int
) -> None:
    share = max(1, maximum // processes)

    if fits(used, cost, share=share, maximum=maximum):
        assert used + cost <= share or (used == 0 and cost <= maximum)
        assert used + cost <= maximum
    else:
        assert used + cost > share
