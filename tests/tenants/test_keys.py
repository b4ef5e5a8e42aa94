import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenants import keys
from tenants.keys import ALPHABET, LENGTH

KEY = "tsr_Tessera1_MosaicTileTokenTicket0123456789abcdefghijkl_05seot"
LOOKALIKES = st.text(st.sampled_from(f"{ALPHABET}_tsr \n\0é０"), min_size=LENGTH, max_size=LENGTH)


def test_a_minted_key_parses_to_itself_as_text_and_as_bytes() -> None:
    raw = keys.mint()

    assert len(raw.secret) == LENGTH
    assert keys.parse(raw.secret) == keys.parse(raw.secret.encode()) == raw


def test_keys_of_last_year_are_still_keys() -> None:
    raw = keys.parse(KEY)

    assert raw is not None
    assert raw.public_id == "Tessera1"
    assert raw.last4 == "seot"
    # printf %s $KEY | openssl dgst -sha256 -hmac pepper
    expected = "c8fbc00931c1002baf552e3be8d3648fc2bb74109eb786405a75076cccb040b3"
    assert keys.digest(raw, b"pepper").hex() == expected


def test_another_pepper_or_another_key_is_another_digest() -> None:
    one, two = keys.mint(), keys.mint()

    digests = {keys.digest(key, pepper) for key in (one, two) for pepper in (b"old", b"new")}

    assert len(digests) == 4


def test_two_secrets_share_nothing() -> None:
    secrets = [keys.mint().secret.split("_")[2] for _ in range(200)]

    assert len(set(secrets)) == 200
    assert {len(secret) for secret in secrets} == {43}
    for position in range(1, 43):  # the first digit of 256 bits in 43 of base62 is small
        assert len({secret[position] for secret in secrets}) > 30


def test_no_changed_character_passes_the_checksum() -> None:
    for position in range(LENGTH):
        for character in f"{ALPHABET}_- \n\0é":
            changed = KEY[:position] + character + KEY[position + 1 :]
            assert changed == KEY or keys.parse(changed) is None, (position, character)


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "tsr_",
        "sk-proj-" + "a" * 55,
        KEY[:-1],
        KEY + "a",
        KEY + "\n",
        " " + KEY[:-1],
        KEY.replace("tsr", "TSR"),
        KEY.replace("0", "０"),
        KEY.replace("T", "\ud800"),
        KEY.replace("M", "\0"),
        "' OR '1'='1",
        "tsr_" + "x" * 10_000,
        "é" * LENGTH,
    ],
    ids=range(14),
)
def test_junk_is_no_key(junk: str) -> None:
    assert keys.parse(junk) is None
    assert keys.parse(junk.encode("utf-8", "surrogatepass")) is None


@given(st.text() | st.binary() | LOOKALIKES | st.binary(min_size=LENGTH, max_size=LENGTH))
@example(b"\xff" * LENGTH)
def test_parsing_never_raises(raw: str | bytes) -> None:
    assert keys.parse(raw) is None


def test_a_key_in_a_log_is_not_a_secret() -> None:
    raw = keys.mint()
    secret = raw.secret.split("_")[2]

    logged = f"{raw} {raw!r} {[raw]}"

    assert raw.public_id in logged
    assert secret not in logged
