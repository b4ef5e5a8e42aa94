"""What an invoice is downloaded as: PDF, CSV, and the JSON that is hashed."""

import csv
import hashlib
import itertools
import json
import re
import zlib
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import msgspec
import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.invoicing import csv_lines, pdf, snapshots
from billing.invoicing.pdf import format_amount
from billing.invoicing.snapshots import Document
from billing.rating import Kind
from tests.snapshots import line, snapshot, team


def pages(drawn: bytes) -> list[str]:
    document = pypdfium2.PdfDocument(drawn)
    try:
        return [page.get_textpage().get_text_range() for page in document]
    finally:
        document.close()


def read(lines: Any) -> list[dict[str, str]]:
    text = "".join(lines).removeprefix(csv_lines.BOM)
    return list(csv.DictReader(text.splitlines()))


def test_the_same_snapshot_is_drawn_to_the_same_bytes() -> None:
    first, second = (pdf.draw(snapshot(language="zh-hant")) for _ in range(2))

    assert first == second
    assert len(first) < 100_000


def test_another_snapshot_is_drawn_to_other_bytes() -> None:
    assert pdf.draw(snapshot(reason="a")) != pdf.draw(snapshot(reason="b"))


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ["Invoice", "Tax 5 %", "Discount 10 %"]),
        ("zh-hant", ["帳單", "稅額 5 %", "圖片輸入"]),
    ],
)
def test_a_normal_month_is_one_page_in_either_language(language: str, words: list[str]) -> None:
    drawn = snapshot("USD", language=language)
    (page,) = pages(pdf.draw(drawn))

    assert all(word in page for word in words)
    assert "艾克美保險股份有限公司" in page
    assert "TSR-2026-000123" in page
    assert format_amount(drawn.totals.total_minor, 2) in page
    assert snapshots.sha256(drawn) in page


def test_a_long_invoice_repeats_its_columns_and_numbers_its_pages() -> None:
    rows = [line(Kind.OUT, 1000 + n, 30_000_000, model=f"model-{n}") for n in range(120)]
    found = pages(pdf.draw(snapshot(teams=[team("all", "All", rows)])))

    assert len(found) > 2
    for number, page in enumerate(found, 1):
        assert f"Page {number} of {len(found)}" in page
    assert all("Quantity" in page for page in found[:-1])
    assert all(f"model-{n}" in "".join(found) for n in range(120))


def test_a_credit_note_says_what_it_corrects() -> None:
    note = snapshot(kind=Document.CREDIT_NOTE, corrects="TSR-2026-000100", reason="A refund")
    (page,) = pages(pdf.draw(note))

    assert all(word in page for word in ("Credit note", "TSR-2026-000100", "A refund"))
    assert "Amount due" not in page


def test_what_is_issued_anew_says_for_what_and_under_which_prices() -> None:
    prices = snapshots.PriceList(7, "right", "The right prices")
    anew = snapshot(replaces="TSR-2026-000100", price_list=prices)
    (page,) = pages(pdf.draw(anew))

    assert all(word in page for word in ("Replaces", "TSR-2026-000100", "The right prices"))


def test_a_draft_says_so() -> None:
    (page,) = pages(pdf.draw(snapshot(number=None, issued_at=None, due_at=None)))

    assert "Draft" in page


POINTS_PER_MM = 72 / 25.4
TABLE_BELOW = (
    600  # points from the foot of the first page: above are who bills, who is billed, and when
)
GAP = (277, 296)  # points from the left: between what stands left and what stands right
LONG = (
    "The Very Long Name of a Holding for Insurance and Reinsurance 國際貨物保險再保險控股股份有限公司 "
    * 2
)


def test_nothing_that_is_long_leaves_the_page_or_stands_over_something_else() -> None:
    big = line(Kind.IMAGE_IN, 999_999_999_999_999, 12_000_000, "USD", model="m" * 200)
    before = snapshot("USD", teams=[team("big", LONG, [big] * 20)], reason=LONG)
    names = {
        "issuer": msgspec.structs.replace(before.issuer, name=LONG),
        "customer": msgspec.structs.replace(before.customer, legal_name=LONG, address=LONG),
    }
    drawn = pdf.draw(msgspec.structs.replace(before, **names))

    margin = pdf.MARGIN_MM * POINTS_PER_MM
    found = boxes(drawn)
    assert min(left for left, *_ in found) > margin - 1
    assert max(right for _, _, right, _ in found) < 210 * POINTS_PER_MM - margin + 1
    assert "999,999,999,999,999" in "".join(pages(drawn))
    parties = itertools.takewhile(lambda box: box[3] > TABLE_BELOW, found)
    assert not [left for left, *_ in parties if GAP[0] < left < GAP[1]]


def boxes(drawn: bytes) -> list[tuple[float, ...]]:
    """Return the box of each glyph in points: left, bottom, right, top; page by page, as they were drawn."""
    with closing(pypdfium2.PdfDocument(drawn)) as document:
        texts = [page.get_textpage() for page in document]
        found = [text.get_charbox(n) for text in texts for n in range(text.count_chars())]
        for text in texts:
            text.close()
    return found


def test_free_units_have_the_price_that_they_have_in_their_line() -> None:
    (page,) = pages(pdf.draw(snapshot("USD")))

    assert "Free allowance: Text tokens in −1,000,000 10.00 −10.00" in " ".join(page.split())
    assert "Tiers count the usage of all teams together" in page


def test_the_days_of_an_invoice_are_of_its_issuer_as_its_number_is() -> None:
    new_year = datetime(2026, 12, 31, 17, tzinfo=UTC)  # in Taipei, and not in Los Angeles
    drawn = pdf.draw(
        snapshot(number="TSR-2027-000001", timezone="America/Los_Angeles", issued_at=new_year)
    )

    (page,) = pages(drawn)
    assert "2027-01-01" in page
    assert "2026-12-31" not in page


# The drawing of the sample by its number. What was drawn by an earlier one is kept, and not compared any more: so
# whoever changes what is drawn gives `DRAWING` another number, and adds it here.
DRAWINGS = {1: "f5594d52d486e2a5342f88b4f77b54895fc9c83db2202028ff6a90a486b026b3"}


def test_whoever_changes_the_drawing_gives_it_another_number() -> None:
    drawn = pdf.draw(snapshot("USD")) + pdf.draw(snapshot(language="zh-hant"))
    streams = re.findall(rb"stream\n(x.*?)\nendstream", drawn, re.DOTALL)
    contents = [zlib.decompress(each) for each in streams]
    pages = [content for content in contents if b" Tf" in content]

    assert len(pages) == 2
    assert DRAWINGS[pdf.DRAWING] == hashlib.sha256(b"".join(pages)).hexdigest()


@settings(max_examples=15, deadline=None)
@given(name=st.text(max_size=300), address=st.text(max_size=600))
def test_whatever_a_customer_is_called_is_drawn(name: str, address: str) -> None:
    before = snapshot()
    customer = msgspec.structs.replace(before.customer, legal_name=name, address=address)

    assert pdf.draw(msgspec.structs.replace(before, customer=customer)).startswith(b"%PDF")


def test_the_csv_adds_up_to_the_subtotal() -> None:
    drawn = snapshot("USD")
    rows = read(csv_lines.lines(drawn))

    cents = [round(float(row["amount"]) * 100) for row in rows]
    assert sum(cents) == drawn.totals.subtotal_minor
    assert rows[4]["kind"] == "allowance_text_in"
    assert rows[4]["amount"] == "-10.00"


@pytest.mark.parametrize(
    "start",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\tx", "\rx", "\nx"),
        *("＝1+1", "＋1", "－1", "＠SUM(A1)", "\u3000＝1", "\u200b=1", "\ufeff=1"),
    ],
)
def test_no_text_of_a_csv_is_a_formula(start: str) -> None:
    drawn = snapshot(teams=[team(start, start, [line(Kind.OUT, 5, 1, model=start)])])
    (row,) = csv.reader("".join(list(csv_lines.lines(drawn))[1:]).splitlines(keepends=True))

    assert row[2].startswith("'")
    assert row[3] == f"'{start}"


def test_a_csv_is_streamed_row_by_row() -> None:
    rows = ([n] for n in itertools.count())
    lines = csv_lines.stream(["n"], rows)

    assert [next(lines) for _ in range(3)][-1] == "1\r\n"
    assert next(rows) == [2]


def test_the_hash_survives_jsonb_and_nothing_else() -> None:
    drawn = snapshot()
    scrambled = dict(reversed(snapshots.to_json(drawn).items()))
    back = snapshots.from_json(json.loads(json.dumps(scrambled)))

    assert snapshots.sha256(back) == snapshots.sha256(drawn)
    assert snapshots.sha256(msgspec.structs.replace(drawn, reason="x")) != snapshots.sha256(drawn)


def test_what_is_hashed_is_what_anybody_can_make_of_the_json() -> None:
    drawn = snapshot(language="zh-hant")
    plain = json.loads(snapshots.canonical(drawn))
    compact = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    assert compact.encode() == snapshots.canonical(drawn)


def test_a_field_too_many_is_no_snapshot() -> None:
    with pytest.raises(msgspec.ValidationError):
        snapshots.from_json(snapshots.to_json(snapshot()) | {"more": 1})
