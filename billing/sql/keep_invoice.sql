CREATE OR REPLACE FUNCTION public.billing_keep_invoice()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
END $function$;

CREATE TRIGGER kept BEFORE DELETE OR UPDATE ON billing_invoice FOR EACH ROW EXECUTE FUNCTION billing_keep_invoice();
