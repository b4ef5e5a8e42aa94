"""Tiers and allowances are append-only, a price is sealed with its tiers, and all is in one currency."""

from django.db import migrations

CURRENCIES = """
ALTER TABLE billing_price ADD CONSTRAINT price_is_in_its_lists_currency
    FOREIGN KEY (price_list_id, currency) REFERENCES billing_pricelist (id, currency);
"""
UNDO_CURRENCIES = "ALTER TABLE billing_price DROP CONSTRAINT price_is_in_its_lists_currency"

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pricetier
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_allowance
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""
UNDO_APPEND_ONLY = """
DROP TRIGGER append_only ON billing_pricetier;
DROP TRIGGER append_only ON billing_allowance;
"""

# Counted at commit, as a price is written before its tiers. A tier that comes later finds the count complete.
SEALED = """
CREATE FUNCTION billing_count_tiers() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    price bigint := CASE TG_TABLE_NAME WHEN 'billing_price' THEN NEW.id ELSE (to_jsonb(NEW) ->> 'price_id')::bigint END;
    found bigint := (SELECT count(*) FROM billing_pricetier t WHERE t.price_id = price);
    promised bigint := (SELECT tier_count FROM billing_price p WHERE p.id = price);
BEGIN
    IF found <> promised THEN
        RAISE EXCEPTION 'price % has % tiers, and says that it has %', price, found, promised
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER tiers_are_sealed AFTER INSERT ON billing_price DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION billing_count_tiers();
CREATE CONSTRAINT TRIGGER tiers_are_sealed AFTER INSERT ON billing_pricetier DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION billing_count_tiers();
"""
UNDO_SEALED = """
DROP TRIGGER tiers_are_sealed ON billing_price;
DROP TRIGGER tiers_are_sealed ON billing_pricetier;
DROP FUNCTION billing_count_tiers();
"""

# What is closed stays closed, and who pays in one currency is not billed by a list in another.
ACCOUNTS = """
CREATE FUNCTION billing_keep_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.closed_until < OLD.closed_until OR NEW.organization_id <> OLD.organization_id THEN
            RAISE EXCEPTION 'account % was closed until %: that stays', OLD.id, OLD.closed_until
                USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.price_list_id IS NOT DISTINCT FROM OLD.price_list_id THEN
            RETURN NEW;
        END IF;
    END IF;
    IF EXISTS (
        SELECT FROM billing_pricelist l JOIN tenants_organization o ON o.id = NEW.organization_id
        WHERE l.id = NEW.price_list_id AND l.currency <> o.currency) THEN
        RAISE EXCEPTION 'price list % is not in the currency of organization %', NEW.price_list_id, NEW.organization_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_account BEFORE INSERT OR UPDATE ON billing_account
    FOR EACH ROW EXECUTE FUNCTION billing_keep_account();
"""
UNDO_ACCOUNTS = """
DROP TRIGGER keep_account ON billing_account;
DROP FUNCTION billing_keep_account();
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_price_lists_and_accounts")]

    operations = [
        migrations.RunSQL(CURRENCIES, UNDO_CURRENCIES),
        migrations.RunSQL(APPEND_ONLY, UNDO_APPEND_ONLY),
        migrations.RunSQL(SEALED, UNDO_SEALED),
        migrations.RunSQL(ACCOUNTS, UNDO_ACCOUNTS),
    ]
