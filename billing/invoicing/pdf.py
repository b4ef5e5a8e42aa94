"""An invoice as a PDF: A4, drawn from its snapshot alone. The same snapshot gives the same bytes.

fpdf2 draws it: it fetches nothing and runs nothing. The font is Noto Sans TC, of which only the glyphs in use are
embedded. It has one weight; what is bold is drawn with a thin outline, and small Chinese without.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pylopdf_fonts_zh_tw
from fpdf import FPDF
from fpdf.enums import TextMode

from billing.invoicing.snapshots import (
    Allowance,
    Document,
    Line,
    Snapshot,
    Team,
    Tier,
    items_of,
    sha256,
)
from billing.invoicing.wording import WORDS, Words
from billing.money import format_micro

DRAWING = 1  # goes up whenever the same snapshot is drawn otherwise; what was drawn before is kept
FONT = "noto"
MARGIN_MM, FOOT_MM = 18.0, 20.0
ROW_MM, BAND_MM = 4.7, 5.3
ROW_SIZE, QUIET_SIZE = 8.5, 7.5
GAP_MM, CELL_GAP_MM = 8.0, 1.5  # to what stands at the right, on the page and in a row
INK, QUIET, RULE, TINT = (23, 32, 42), (104, 116, 128), (208, 214, 220), (243, 246, 248)
ACCENT = (14, 98, 110)
BOLD_MM = 0.045  # at nine points
# A screen draws no line thinner than a pixel, which would fill the glyphs of Chinese that are smaller than this.
DENSE_FROM, DENSE_SIZE = "\u2e80", 12
# model, usage, quantity, price, amount: how wide, and to which side
COLUMNS = ((52.0, "L"), (50.0, "L"), (26.0, "R"), (20.0, "R"), (26.0, "R"))
SUBTOTAL_COLUMNS = ((52.0, "L"), (96.0, "L"), (26.0, "R"))
TEXT_LENGTH_MAX = 400  # of any one text on the page; the snapshot has it whole
MINUS = "−"
ALIAS = "{nb}"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def draw(snapshot: Snapshot) -> bytes:
    """Return the PDF."""
    page = _Page(snapshot)
    page.head()
    page.parties()
    page.usage()
    page.totals()
    return bytes(page.output())


class _Page(FPDF):
    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(format="A4")
        self.snapshot = snapshot
        self.words: Words = WORDS[snapshot.language]
        self.content_sha256 = sha256(snapshot)
        self.in_table = False
        self.set_creation_date(snapshot.issued_at or EPOCH)
        self.set_title(f"{self._title()} {snapshot.number or ''}".strip())
        self.set_author(_plain(snapshot.issuer.name))
        self.set_lang({"en": "en", "zh-hant": "zh-Hant"}[snapshot.language])
        self.set_margins(MARGIN_MM, MARGIN_MM)
        self.set_auto_page_break(False)
        self.alias_nb_pages(ALIAS)
        self.add_font(FONT, fname=pylopdf_fonts_zh_tw.sans_path())
        self.set_font(FONT, size=9)
        self.add_page()

    # FPDF calls it at the end of each page.
    def footer(self) -> None:
        self.set_y(-FOOT_MM + 5)
        self._rule()
        self.ln(2)
        left = (
            f"{self.snapshot.number or self.words.draft}   {self.words.hash} {self.content_sha256}"
        )
        self._text(left, size=6.5, colour=QUIET, width=self.epw - 30, newline=False)
        pages = self.words.page.format(self.page_no(), ALIAS)
        # What stands for the number of pages is wider than a digit, which is what it becomes.
        self.set_x(self.get_x() + self.get_string_width(ALIAS) - self.get_string_width("0"))
        self._text(pages, size=6.5, colour=QUIET, width=30, align="R")

    def head(self) -> None:
        """Draw the issuer on the left and what this is on the right."""
        issuer, top, width = self.snapshot.issuer, self.get_y(), self.epw / 2
        self._name(issuer.name, size=13, width=width - GAP_MM, line=7)
        lines = _lines(issuer.address)
        if issuer.tax_id:
            lines.append(f"{self.words.tax_id} {_plain(issuer.tax_id)}")
        self._block(lines, width=width - GAP_MM, colour=QUIET)
        bottom = self.get_y()
        self.set_xy(self.l_margin + width, top)
        self._text(self._title(), size=20, bold=True, colour=ACCENT, width=width, align="R", line=9)
        if self.snapshot.number:
            self.set_x(self.l_margin + width)
            self._text(self.snapshot.number, size=11, width=width, align="R", line=6)
        self.set_y(max(bottom, self.get_y()) + 5)
        self._rule()
        self.ln(5)

    def parties(self) -> None:
        """Draw the customer on the left and the dates on the right."""
        customer, top, width = self.snapshot.customer, self.get_y(), self.epw / 2
        self._text(self.words.billed_to, size=7.5, colour=QUIET, width=width, line=4.5)
        self._name(customer.legal_name or customer.name, size=10.5, width=width - GAP_MM, line=5.8)
        lines = _lines(customer.address)
        if customer.tax_id:
            lines.append(f"{self.words.tax_id} {_plain(customer.tax_id)}")
        self._block(lines, width=width - GAP_MM)
        bottom = self.get_y()
        self.set_y(top)
        for label, value in self._facts():
            self.set_x(self.l_margin + width)
            self._text(label, size=8.5, colour=QUIET, width=24, newline=False, line=5)
            for part in self._wrapped(value, width - 24, 8.5):
                self.set_x(self.l_margin + width + 24)
                self._text(part, size=8.5, width=width - 24, align="R", line=5)
        self.set_y(max(bottom, self.get_y()) + 6)

    def usage(self) -> None:
        self._columns()
        self.in_table = True
        if not self.snapshot.teams:
            self._text(self.words.nothing, size=9, colour=QUIET, line=8)
        for team in self.snapshot.teams:
            self._team(team)
        self.in_table = False

    def totals(self) -> None:
        """Draw the sums at the right, all on one page, and the note beside them."""
        rows = self._sums()
        self._keep(3 + len(rows) * 5.6 + 2.5)
        self.ln(3)
        top, width = self.get_y(), 92.0
        self._block(self._notes(), width=self.epw - width - GAP_MM, size=7.5, colour=QUIET)
        self.set_y(top)
        for label, amount_minor, is_strong in rows:
            self.set_x(self.l_margin + self.epw - width)
            if is_strong:
                self._rule(width)
                self.ln(0.8)
                self.set_x(self.l_margin + self.epw - width)
            size, line = (10.5, 7) if is_strong else (9, 5.6)
            self._text(label, size=size, bold=is_strong, width=width - 40, line=line, newline=False)
            amount = self._amount(amount_minor)
            amount = f"{self.snapshot.currency} {amount}" if is_strong else amount
            self._text(amount, size=size, bold=is_strong, width=40, align="R", line=line)

    def _title(self) -> str:
        title = self.words.titles[self.snapshot.kind]
        return title if self.snapshot.number else f"{title} · {self.words.draft}"

    def _facts(self) -> list[tuple[str, str]]:
        snapshot, words = self.snapshot, self.words
        found = [(words.issued, snapshot.issued_at), (words.due, snapshot.due_at)]
        zone = ZoneInfo(snapshot.issuer.timezone)  # as of its number: they name the same year
        facts = [(label, f"{at.astimezone(zone).date()}") for label, at in found if at]
        facts.append((words.period, self._period()))
        if snapshot.corrects:
            facts.append((words.corrects, snapshot.corrects))
        if snapshot.replaces:
            facts.append((words.replaces, snapshot.replaces))
        if snapshot.price_list:
            facts.append((words.price_list, _plain(snapshot.price_list.name)))
        if snapshot.reason:
            facts.append((words.reason, _plain(snapshot.reason)))
        return facts

    def _period(self) -> str:
        """Name the first and the last day; what ends at midnight ends with the day before."""
        zone, period = self.snapshot.timezone, self.snapshot.period
        last = self._day(period.end - timedelta(microseconds=1))
        return f"{self._day(period.start)} {self.words.until} {last} ({zone})"

    def _day(self, instant: datetime) -> date:
        return instant.astimezone(ZoneInfo(self.snapshot.timezone)).date()

    def _columns(self) -> None:
        words = self.words
        labels = (words.model, words.usage, words.quantity, words.price, words.amount)
        for label, (width, align) in zip(labels, COLUMNS, strict=True):
            self._text(
                label, size=7.5, colour=QUIET, width=width, align=align, line=6, newline=False
            )
        self.ln(6)
        self._rule()
        self.ln(1)

    def _team(self, team: Team) -> None:
        self._band(team.name)
        shown = ""
        for line in team.lines:
            self._line(line, model="" if line.model == shown else line.model)
            shown = line.model
        for allowance in team.allowances:
            self._allowance(allowance)
        label = self.words.team_subtotal.format(_plain(team.name))
        width = SUBTOTAL_COLUMNS[1][0] - CELL_GAP_MM
        self._keep(ROW_MM * len(self._wrapped(label, width, ROW_SIZE)))  # the rule goes with it
        self._rule()
        cells = ("", label, self._amount(team.subtotal_minor))
        self._row(cells, columns=SUBTOTAL_COLUMNS, bold=True)
        self.ln(2)

    def _band(self, name: str) -> None:
        """Begin a team with its name; never as the last thing on a page."""
        height = BAND_MM * len(self._wrapped(_plain(name), self.epw, 9))
        self._keep(height + 3 * ROW_MM)
        self.set_fill_color(*TINT)
        self.rect(self.l_margin, self.get_y(), self.epw, height, style="F")
        self._name(name, size=9, width=self.epw, line=BAND_MM)

    def _line(self, line: Line, model: str) -> None:
        """Draw a line; if it lay in several tiers or prices, these below it."""
        usage = self.words.kinds[line.kind]
        if line.images:
            images = self.words.images.format(format_amount(abs(line.images), 0))
            usage = f"{usage} ({images})"
        self._item(line, (_plain(model), usage, format_amount(line.quantity, 0)))
        if line.late_quantity:
            late = self.words.late.format(format_amount(abs(line.late_quantity), 0))
            self._row(("", late, "", "", ""), quiet=True)

    def _allowance(self, allowance: Allowance) -> None:
        """Draw what was free: the quantity below zero, at the price that it has in its line."""
        usage = self.words.allowance.format(self.words.kinds[allowance.kind])
        quantity = format_amount(-allowance.quantity, 0)
        self._item(allowance, (_plain(allowance.model), usage, quantity), sign=-1)

    def _item(self, item: Line | Allowance, cells: tuple[str, str, str], sign: int = 1) -> None:
        is_split = len(item.tiers) > 1
        price = "" if is_split else self._price(item.tiers)
        self._row((*cells, price, self._amount(item.amount_minor)))
        for tier in item.tiers if is_split else []:
            quantity = format_amount(sign * tier.quantity, 0)
            self._row(("", self._tier(tier), quantity, self._price([tier]), ""), quiet=True)

    def _tier(self, tier: Tier) -> str:
        if tier.end is None:
            return self.words.and_more.format(f"{tier.start:,}")
        return self.words.tier.format(f"{tier.start:,}", f"{tier.end:,}")

    def _price(self, tiers: Sequence[Tier]) -> str:
        return format_micro(tiers[0].micro) if tiers else ""

    def _sums(self) -> list[tuple[str, int, bool]]:
        snapshot, words, totals = self.snapshot, self.words, self.snapshot.totals
        rows = [(words.subtotal, totals.subtotal_minor, False)]
        if discount := snapshot.discount:
            label = words.discount if discount.bp > 0 else words.markup
            rows.append((label.format(_percent(abs(discount.bp))), discount.amount_minor, False))
        tax = (
            words.tax_exempt if snapshot.tax.exempt else words.tax.format(_percent(snapshot.tax.bp))
        )
        rows.append((tax, totals.tax_minor, False))
        if snapshot.kind is Document.CREDIT_NOTE:
            return [*rows, (words.credited, totals.total_minor, True)]
        if not snapshot.credits:
            return [*rows, (words.amount_due, totals.due_minor, True)]
        rows.append((words.total, totals.total_minor, False))
        for credit in snapshot.credits:
            label = {"granted": words.granted, "purchased": words.purchased}[credit.source]
            if credit.expires_at:
                label = f"{label} ({words.expires.format(self._day(credit.expires_at))})"
            rows.append((label, credit.amount_minor, False))
        return [*rows, (words.amount_due, totals.due_minor, True)]

    def _amount(self, amount_minor: int) -> str:
        return format_amount(amount_minor, self.snapshot.minor_digits)

    def _notes(self) -> list[str]:
        """Say what the amounts are in and, if there are tiers, whose quantity decides them."""
        found = [self.words.prices_note.format(self.snapshot.currency)]
        if any(len(item.tiers) > 1 for _, item in items_of(self.snapshot)):
            found.append(self.words.tiers_note)
        return found

    def _row(
        self,
        cells: Sequence[str],
        *,
        columns: Sequence[tuple[float, str]] = COLUMNS,
        bold: bool = False,
        quiet: bool = False,
    ) -> None:
        """Draw a row of the table, as high as its longest text. Numbers stay on one line, smaller if they must."""
        size = QUIET_SIZE if quiet else ROW_SIZE
        wrapped = [
            self._wrapped(cell, width - CELL_GAP_MM, size) if align == "L" else [cell]
            for cell, (width, align) in zip(cells, columns, strict=True)
        ]
        line = 4.0 if quiet else ROW_MM
        height = max(map(len, wrapped), default=1) * line
        self._keep(height)
        top, x = self.get_y(), self.l_margin
        for parts, (width, align) in zip(wrapped, columns, strict=True):
            for number, part in enumerate(parts):
                self.set_xy(x, top + number * line)
                fitting = self._fitting(part, width - CELL_GAP_MM, size)
                self._text(
                    part,
                    size=fitting,
                    bold=bold,
                    colour=QUIET if quiet else INK,
                    width=width,
                    line=line,
                    align=align,
                )
            x += width
        self.set_xy(self.l_margin, top + height)

    def _keep(self, height_mm: float) -> None:
        """Go to another page unless so much still fits on this one."""
        if self.get_y() + height_mm <= self.h - FOOT_MM:
            return
        self.add_page()
        if self.in_table:
            self._columns()

    def _fitting(self, text: str, width: float, size: float) -> float:
        """Return the size in which the text is not wider than that."""
        self.set_font(FONT, size=size)
        return min(size, size * width / max(self.get_string_width(text), 1.0))

    def _wrapped(self, text: str, width: float, size: float) -> list[str]:
        self.set_font(FONT, size=size)
        self.c_margin = 0
        return list(
            self.multi_cell(width, text=text, dry_run=True, output="LINES")  # type: ignore[arg-type]
        )

    def _name(self, text: str, *, size: float, width: float, line: float) -> None:
        """Draw a name in bold, on as many lines as it needs."""
        for part in self._wrapped(_plain(text), width, size):
            self._text(part, size=size, bold=True, width=width, line=line)

    def _block(
        self,
        lines: Iterable[str],
        *,
        width: float = 0,
        size: float = 8.5,
        colour: tuple[int, int, int] = INK,
    ) -> None:
        for line in lines:
            for part in self._wrapped(line, width or self.epw, size):
                self._text(part, size=size, colour=colour, width=width or self.epw, line=4.4)

    def _text(
        self,
        text: str,
        *,
        size: float,
        bold: bool = False,
        colour: tuple[int, int, int] = INK,
        width: float = 0,
        line: float = 4.4,
        align: str = "L",
        newline: bool = True,
    ) -> None:
        """Draw one line of text and go on below it, or to its right."""
        self.set_font(FONT, size=size)
        self.set_text_color(*colour)
        self.set_draw_color(*colour)
        self.set_line_width(BOLD_MM * size / 9)
        is_outlined = bold and (size >= DENSE_SIZE or not _is_dense(text))
        self.text_mode = TextMode.FILL_STROKE if is_outlined else TextMode.FILL
        self.c_margin = 0
        x = self.get_x()
        self.cell(width or self.epw, line, text, align=align)
        if newline:
            self.set_xy(self.l_margin, self.get_y() + line)
        else:
            self.set_x(x + (width or self.epw))

    def _rule(self, width: float = 0) -> None:
        self.set_draw_color(*RULE)
        self.set_line_width(0.2)
        right = self.l_margin + self.epw
        self.line(right - (width or self.epw), self.get_y(), right, self.get_y())


def format_amount(amount_minor: int, minor_digits: int) -> str:
    """Return minor units as an amount, with thousands set apart and a true minus sign.

    >>> format_amount(-123456, 2)
    '−1,234.56'
    """
    whole, rest = divmod(abs(amount_minor), 10**minor_digits)
    text = f"{whole:,}.{rest:0{minor_digits}d}" if minor_digits else f"{whole:,}"
    return f"{MINUS}{text}" if amount_minor < 0 else text


def _percent(bp: int) -> str:
    return f"{bp // 100}.{bp % 100:02d}".rstrip("0").rstrip(".")


def _is_dense(text: str) -> bool:
    return any(each >= DENSE_FROM for each in text)


def _lines(text: str) -> list[str]:
    return [_plain(line) for line in text.splitlines() if line.strip()]


def _plain(text: str) -> str:
    """Return the text without what would not show or would turn it around: control and format characters."""
    shown = (" " if unicodedata.category(each) in ("Cc", "Cf") else each for each in text)
    return "".join(shown)[:TEXT_LENGTH_MAX].strip()
