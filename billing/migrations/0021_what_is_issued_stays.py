"""Triggers: of an issued invoice only its status and its reminders move; what belongs to it is only ever added."""

from django.db import migrations

FREEZE = """
CREATE FUNCTION billing_keep_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moves text[] := ARRAY['status', 'voided_at', 'void_reason', 'reminders', 'reminded_at'];
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.status <> 'draft' THEN
            RAISE EXCEPTION 'invoice % is issued: it stays', OLD.number USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN OLD;
    END IF;
    IF OLD.status = 'draft' THEN
        IF NEW.status NOT IN ('draft', 'issued') THEN
            RAISE EXCEPTION 'a draft is issued before it is %', NEW.status USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF to_jsonb(NEW) - moves IS DISTINCT FROM to_jsonb(OLD) - moves THEN
        RAISE EXCEPTION 'invoice % is issued: it does not change', OLD.number USING ERRCODE = 'restrict_violation';
    END IF;
    IF (OLD.status, NEW.status) NOT IN (('issued', 'issued'), ('paid', 'paid'), ('issued', 'paid'), ('paid', 'issued'),
                                        ('issued', 'void'), ('void', 'void'))
       OR (OLD.status = 'void' AND to_jsonb(NEW) IS DISTINCT FROM to_jsonb(OLD)) THEN
        RAISE EXCEPTION 'invoice %: % does not become %', OLD.number, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER kept BEFORE UPDATE OR DELETE ON billing_invoice
    FOR EACH ROW EXECUTE FUNCTION billing_keep_invoice();
CREATE TRIGGER kept_whole BEFORE TRUNCATE ON billing_invoice
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();

CREATE FUNCTION billing_keep_invoice_line() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    of_invoice bigint := coalesce(CASE TG_OP WHEN 'INSERT' THEN NULL ELSE OLD.invoice_id END, NEW.invoice_id);
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.invoice_id <> OLD.invoice_id
       OR EXISTS (SELECT FROM billing_invoice i WHERE i.id = of_invoice AND i.status <> 'draft') THEN
        RAISE EXCEPTION 'the lines of an issued invoice do not change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;

CREATE TRIGGER kept BEFORE INSERT OR UPDATE OR DELETE ON billing_invoiceline
    FOR EACH ROW EXECUTE FUNCTION billing_keep_invoice_line();
CREATE TRIGGER kept_whole BEFORE TRUNCATE ON billing_invoiceline
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();

-- A number is neither forgotten nor taken twice.
CREATE FUNCTION billing_keep_numbers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.last_number <> OLD.last_number + 1
       OR (NEW.issuer_id, NEW.year) IS DISTINCT FROM (OLD.issuer_id, OLD.year) THEN
        RAISE EXCEPTION 'invoice numbers go up by one' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER kept BEFORE UPDATE OR DELETE ON billing_invoicenumbers
    FOR EACH ROW EXECUTE FUNCTION billing_keep_numbers();
CREATE TRIGGER kept_whole BEFORE TRUNCATE ON billing_invoicenumbers
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""

APPEND_ONLY = ("invoicedocument", "payment", "creditgrant", "creditdraw", "event")


class Migration(migrations.Migration):

    dependencies = [("billing", "0020_invoices")]

    operations = [
        migrations.RunSQL(
            FREEZE,
            """
            DROP TRIGGER kept ON billing_invoicenumbers; DROP TRIGGER kept_whole ON billing_invoicenumbers;
            DROP TRIGGER kept ON billing_invoiceline; DROP TRIGGER kept_whole ON billing_invoiceline;
            DROP TRIGGER kept ON billing_invoice; DROP TRIGGER kept_whole ON billing_invoice;
            DROP FUNCTION billing_keep_numbers(); DROP FUNCTION billing_keep_invoice_line();
            DROP FUNCTION billing_keep_invoice();
            """,
        ),
        *(
            migrations.RunSQL(
                f"""CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_{table}
                    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change()""",
                f"DROP TRIGGER append_only ON billing_{table}",
            )
            for table in APPEND_ONLY
        ),
    ]
