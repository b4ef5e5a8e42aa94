"""English and 繁體中文: every word is translated, and what is committed as .mo is what the .po says."""

import gettext
import re
from pathlib import Path

import pytest
from django.test import Client
from django.utils import translation

from billing.models import Price, UsageSource, UsageStatus
from dashboard.wording import WORDS
from tests import booked
from tests.dashboard.conftest import Person

DASHBOARD = Path(__file__).parents[2] / "dashboard"
LOCALE = DASHBOARD / "locale" / "zh_Hant" / "LC_MESSAGES"
ENTRY = re.compile(
    r'(?:msgctxt "(?P<context>.*)"\n)?msgid "(?P<id>.+)"\n'
    r'msgstr "(?P<text>.*)"'
)
TRANSLATED = re.compile(r'{% translate (?:"([^"]+)"|\'([^\']+)\')')


def entries() -> dict[str, str]:
    """Return what the .po says, by what is looked up."""
    found = ENTRY.finditer((LOCALE / "django.po").read_text())
    return {
        f"{each['context']}\x04{each['id']}" if each["context"] else each["id"]: each["text"]
        for each in found
    }


def test_nothing_is_left_untranslated() -> None:
    assert len(entries()) > 100
    assert [word for word, text in entries().items() if not text] == []
    assert "fuzzy" not in (LOCALE / "django.po").read_text()


def test_what_is_compiled_is_what_is_written() -> None:
    with (LOCALE / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]

    assert {key: text for key, text in compiled.items() if key} == entries()


def test_every_word_of_the_templates_is_listed() -> None:
    templates = (DASHBOARD / "templates").rglob("*.html")
    words = {"".join(pair) for file in templates for pair in TRANSLATED.findall(file.read_text())}

    assert len(words) > 80
    assert words - entries().keys() == set()


def test_every_word_of_the_books_has_one_for_people() -> None:
    assert WORDS["status"].keys() == set(UsageStatus.values)
    assert WORDS["source"].keys() == set(UsageSource.values)


@pytest.mark.parametrize("wish", ["zh-TW", "zh-Hant", "zh-HK"])
def test_the_browser_says_which_language_to_begin_with(wish: str, db: None) -> None:
    page = Client(headers={"accept-language": wish}).get("/sign-in/").content.decode()

    assert "登入" in page
    assert '<html lang="zh-hant">' in page


def test_the_switch_stays(alice: Person, vlm: Price) -> None:
    booked.spend(alice.tenant, vlm, 1)
    form = {"language": "zh-hant", "next": alice.url("usage/")}
    assert alice.client.post("/language/", form).headers["location"] == alice.url("usage/")

    assert "完成" in alice.read("usage/")
    alice.client.post("/language/", {"language": "en"})
    assert "Completed" in alice.read("usage/")


@pytest.mark.parametrize("page", ["", "budgets/", "usage/", "invoices/"])
def test_pages_are_whole_in_both_languages(alice: Person, page: str) -> None:
    english = alice.read(page)
    alice.client.post("/language/", {"language": "zh-hant"})
    chinese = alice.read(page)

    assert "Sign out" in english
    assert "Sign out" not in chinese
    assert chinese.count("<h1>") == english.count("<h1>") == 1


def test_no_other_app_translates_our_words_first() -> None:
    """Apps that are listed earlier win: a word that they have too needs another one here."""
    with translation.override("zh-hant"):
        shown = {word: translation.gettext(word) for word in entries() if "\x04" not in word}

    assert {word: text for word, text in shown.items() if text != entries()[word]} == {}
