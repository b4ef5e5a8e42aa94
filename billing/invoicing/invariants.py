"""The invoices' part of the books: numbers, chain, lines, credit and payments, each a query that finds what breaks it.

`billing.books` asks them with its own. They cannot make an invoice's hash anew, nor rate its ledger: that is
`billing.invoicing.verification`, invoice by invoice.
"""

from billing.invoicing.snapshots import GENESIS_SHA256

# The organizations whose invoices are looked at: one, or all.
IN_INVOICES = "(%(organization)s::bigint IS NULL OR i.organization_id = %(organization)s)"
NAME = "coalesce(i.number, 'draft ' || i.id)"
ISSUED = f"i.number IS NOT NULL AND {IN_INVOICES}"

# The one before, of the same year or of the last year that has any.
BEFORE = """
    LEFT JOIN LATERAL (
        SELECT b.number, b.year, b.serial, b.content_sha256 FROM billing_invoice b
        WHERE b.issuer_id = i.issuer_id AND (b.year, b.serial) < (i.year, i.serial)
        ORDER BY b.year DESC, b.serial DESC LIMIT 1) before ON true
"""
SUMS = "subtotal_minor, discount_minor, tax_minor, total_minor, credits_minor, due_minor"
FROZEN_SUMS = ", ".join(
    f"(i.snapshot -> 'totals' ->> '{name}')::bigint" for name in SUMS.split(", ")
)
DRAWN = (
    "coalesce((SELECT sum(d.amount_minor) FROM billing_creditdraw d WHERE d.{of} = {row}.id), 0)"
)
PAID = "coalesce((SELECT sum(p.amount_minor) FROM billing_payment p WHERE p.invoice_id = i.id), 0)"
CREDITED = (
    "coalesce((SELECT sum(n.total_minor) FROM billing_invoice n WHERE n.corrects_id = i.id), 0)"
)

# Each selects one column, `example`: what is broken, in a line.
INVARIANTS: dict[str, tuple[str, str]] = {
    "invoice_numbers_have_no_gap": (
        "the numbers of an issuer's year begin at 1 and have no gap",
        f"""SELECT format('%%s follows %%s', i.number, coalesce(before.number, 'nothing')) AS example
            FROM billing_invoice i {BEFORE}
            WHERE {ISSUED}
              AND i.serial <> CASE before.year WHEN i.year THEN before.serial ELSE 0 END + 1""",
    ),
    "invoices_are_chained": (
        "each invoice names the hash of its issuer's invoice before it, and the first one zeros",
        f"""SELECT format('%%s does not follow %%s', i.number, coalesce(before.number, 'nothing')) AS example
            FROM billing_invoice i {BEFORE}
            WHERE {ISSUED} AND i.previous_sha256 <> coalesce(before.content_sha256, '{GENESIS_SHA256}')""",
    ),
    # Of all issuers, whoever is asked about: the next invoice of anybody takes its number and hash from here.
    "invoice_numbers_are_the_last": (
        "the number and the hash that an issuer goes on from are those of its last invoice",
        f"""SELECT format('issuer %%s in %%s: %%s, the last one is %%s', n.issuer_id, n.year, n.last_number,
                coalesce(last.number, 'none')) AS example
            FROM billing_invoicenumbers n
            LEFT JOIN LATERAL (
                SELECT i.number, i.serial, i.year, i.content_sha256 FROM billing_invoice i
                WHERE i.issuer_id = n.issuer_id AND i.year <= n.year
                ORDER BY i.year DESC, i.serial DESC LIMIT 1) last ON true
            WHERE n.last_number <> CASE last.year WHEN n.year THEN last.serial ELSE 0 END
               OR n.last_sha256 <> coalesce(last.content_sha256, '{GENESIS_SHA256}')""",
    ),
    "invoice_is_as_it_was_frozen": (
        "an issued invoice has the number, the predecessor, the period and the sums of its snapshot",
        f"""SELECT format('%%s: %%s %%s, its snapshot has %%s', i.number, i.currency, i.total_minor,
                i.snapshot -> 'totals' ->> 'total_minor') AS example
            FROM billing_invoice i
            WHERE {ISSUED}
              AND ((i.number, i.previous_sha256, i.currency, i.period_start, i.period_end) IS DISTINCT FROM
                   (i.snapshot ->> 'number', i.snapshot ->> 'previous_sha256', i.snapshot ->> 'currency',
                    (i.snapshot -> 'period' ->> 'start')::timestamptz, (i.snapshot -> 'period' ->> 'end')::timestamptz)
                   OR ({SUMS}) IS DISTINCT FROM ({FROZEN_SUMS}))""",
    ),
    "invoice_lines_add_up": (
        "the lines of an invoice and its free allowances are its subtotal",
        f"""SELECT format('%%s: %%s, its lines are %%s', {NAME}, i.subtotal_minor, lines.sum) AS example
            FROM billing_invoice i
            CROSS JOIN LATERAL (SELECT coalesce(sum(l.amount_minor), 0) AS sum
                                FROM billing_invoiceline l WHERE l.invoice_id = i.id) lines
            WHERE {IN_INVOICES} AND i.subtotal_minor <> lines.sum""",
    ),
    "what_is_invoiced_is_closed": (
        "the period of an issued invoice is closed, so that nothing more is billed in it",
        f"""SELECT format('%%s until %%s, closed until %%s', i.number, i.period_end, a.closed_until) AS example
            FROM billing_invoice i LEFT JOIN billing_account a ON a.organization_id = i.organization_id
            WHERE {ISSUED} AND i.period_end > coalesce(a.closed_until, 'epoch')""",
    ),
    "credit_drawn_is_on_its_invoice": (
        "what was drawn of an organization's credit is on the invoice, and came back if that is void, or credited",
        f"""SELECT format('%%s: %%s, drawn %%s', {NAME}, i.credits_minor, drawn.sum) AS example
            FROM billing_invoice i
            CROSS JOIN LATERAL (SELECT {DRAWN.format(of="invoice_id", row="i")} AS sum, {CREDITED} AS credited) drawn
            WHERE {IN_INVOICES} AND drawn.sum NOT BETWEEN
                CASE i.status WHEN 'void' THEN 0 ELSE greatest(0, -i.credits_minor + drawn.credited) END
                AND CASE i.status WHEN 'void' THEN 0 ELSE -i.credits_minor END""",
    ),
    "credit_is_not_overdrawn": (
        "no more is drawn of a credit than was granted, nor less than nothing",
        f"""SELECT format('credit %%s: %%s of %%s', i.id, drawn.sum, i.amount_minor) AS example
            FROM billing_creditgrant i
            CROSS JOIN LATERAL (SELECT {DRAWN.format(of="grant_id", row="i")} AS sum) drawn
            WHERE {IN_INVOICES} AND drawn.sum NOT BETWEEN 0 AND i.amount_minor""",
    ),
    "paid_is_what_nothing_is_open_of": (
        "an invoice is paid when payments and credit notes leave nothing open, and only then; no more went back than "
        "came in; nothing is on a void one, or on a credit note",
        f"""SELECT format('%%s is %%s, open is %%s', i.number, i.status, left_over.open) AS example
            FROM billing_invoice i
            CROSS JOIN LATERAL (SELECT {PAID} AS paid, i.total_minor + {CREDITED}
                - {DRAWN.format(of="invoice_id", row="i")} - {PAID} AS open) left_over
            WHERE {ISSUED}
              AND CASE WHEN i.kind <> 'invoice' OR i.status = 'void' THEN left_over.paid <> 0
                  ELSE (i.status = 'paid') <> (left_over.open <= 0)
                       OR left_over.paid < least(0, left_over.open + left_over.paid) END""",
    ),
}
