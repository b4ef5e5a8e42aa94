CREATE OR REPLACE FUNCTION public.billing_keep_numbers()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.last_number <> OLD.last_number + 1
       OR (NEW.issuer_id, NEW.year) IS DISTINCT FROM (OLD.issuer_id, OLD.year) THEN
        RAISE EXCEPTION 'invoice numbers go up by one' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $function$;

CREATE TRIGGER kept BEFORE DELETE OR UPDATE ON billing_invoicenumbers FOR EACH ROW EXECUTE FUNCTION billing_keep_numbers();
