CREATE OR REPLACE FUNCTION public.billing_keep_account()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
END $function$;

CREATE TRIGGER keep_account BEFORE INSERT OR UPDATE ON billing_account FOR EACH ROW EXECUTE FUNCTION billing_keep_account();
