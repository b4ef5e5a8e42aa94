CREATE OR REPLACE FUNCTION public.billing_refuse_change()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'check_violation';
END $function$;

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_alert FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_allowance FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_creditdraw FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_creditgrant FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_event FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER kept_whole BEFORE TRUNCATE ON billing_invoice FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_invoicedocument FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER kept_whole BEFORE TRUNCATE ON billing_invoiceline FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER kept_whole BEFORE TRUNCATE ON billing_invoicenumbers FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_payment FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_price FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_pricetier FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_reconciliation FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON billing_usagerecord FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
