import pytest
from django.core.exceptions import ValidationError

from gateway.base_url import normalise


@pytest.mark.parametrize(
    ("pasted", "stored"),
    [
        ("https://api.example.com/api/models/", "https://api.example.com/api/models"),
        (" HTTP://vllm:8000/v1 ", "http://vllm:8000/v1"),
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("http://[::1]:8001/v1", "http://[::1]:8001/v1"),
    ],
)
def test_an_address_is_stored_without_what_does_not_belong(pasted: str, stored: str) -> None:
    assert normalise(pasted) == stored


@pytest.mark.parametrize(
    ("pasted", "message"),
    [
        ("https://user:secret@host/v1", "holds no credential"),
        ("https://secret@host/v1", "holds no credential"),
        ("https://host/v1/chat/completions", "up to and without"),
        ("https://host/v1?key=secret", "more than scheme, host, port and path"),
        ("https://host/v1#x", "more than scheme, host, port and path"),
        ("https://host/v 1", "more than scheme, host, port and path"),
        ("ftp://host/v1", "is not an address"),
        ("host:8000/v1", "is not an address"),
        ("https://", "is not an address"),
        ("https://host:99999/v1", "is not an address"),
        ("https://[::1/v1", "is not an address"),
        ("https://ho$t/v1", "is not an address"),
        (f"https://host/{'v' * 500}", "at most 500"),
    ],
)
def test_what_requests_cannot_be_built_on_is_refused(pasted: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        normalise(pasted)


def test_a_credential_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as error:
        normalise("https://user:hunter2@host/v1")

    assert "hunter2" not in str(error.value)
