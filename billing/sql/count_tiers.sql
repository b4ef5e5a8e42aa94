CREATE OR REPLACE FUNCTION public.billing_count_tiers()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
END $function$;

CREATE CONSTRAINT TRIGGER tiers_are_sealed AFTER INSERT ON billing_price DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION billing_count_tiers();
CREATE CONSTRAINT TRIGGER tiers_are_sealed AFTER INSERT ON billing_pricetier DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION billing_count_tiers();
