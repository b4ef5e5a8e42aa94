CREATE OR REPLACE FUNCTION public.billing_keep_seals()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    IF EXISTS (SELECT FROM sealed s JOIN billing_invoice i ON i.id = s.invoice_id WHERE i.status <> 'draft') THEN
        RAISE EXCEPTION 'the seals of an issued invoice do not change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $function$;

CREATE TRIGGER kept AFTER INSERT ON billing_usageseal REFERENCING NEW TABLE AS sealed FOR EACH STATEMENT EXECUTE FUNCTION billing_keep_seals();
