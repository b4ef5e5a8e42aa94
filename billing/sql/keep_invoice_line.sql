CREATE OR REPLACE FUNCTION public.billing_keep_invoice_line()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
DECLARE
    of_invoice bigint := coalesce(CASE TG_OP WHEN 'INSERT' THEN NULL ELSE OLD.invoice_id END, NEW.invoice_id);
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.invoice_id <> OLD.invoice_id
       OR EXISTS (SELECT FROM billing_invoice i WHERE i.id = of_invoice AND i.status <> 'draft') THEN
        RAISE EXCEPTION 'the lines of an issued invoice do not change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $function$;

CREATE TRIGGER kept BEFORE INSERT OR DELETE OR UPDATE ON billing_invoiceline FOR EACH ROW EXECUTE FUNCTION billing_keep_invoice_line();
