import pytest
from django.core.exceptions import ImproperlyConfigured

from gateway.env import email


def test_mail_goes_to_the_log_unless_told_otherwise() -> None:
    assert email("console://").backend.endswith("console.EmailBackend")


@pytest.mark.parametrize(
    ("url", "port", "starttls", "tls"),
    [
        ("smtp://mail.example.com", 587, True, False),
        ("smtp://mail.example.com:25?tls=0", 25, False, False),
        ("smtps://mail.example.com", 465, False, True),
    ],
)
def test_an_address_says_how_mail_is_encrypted(
    url: str, port: int, starttls: bool, tls: bool
) -> None:
    read = email(url)

    assert (read.host, read.port) == ("mail.example.com", port)
    assert (read.starttls, read.tls) == (starttls, tls)


def test_user_and_password_are_decoded_and_the_password_is_not_shown() -> None:
    read = email("smtp://ops%40example.com:p%2Fw@mail.example.com")

    assert (read.user, read.password) == ("ops@example.com", "p/w")
    assert "p/w" not in repr(read)


@pytest.mark.parametrize("url", ["mail.example.com", "http://mail.example.com", "smtp://", ""])
def test_what_is_not_understood_stops_the_process(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="TESSERA_EMAIL_URL"):
        email(url)
