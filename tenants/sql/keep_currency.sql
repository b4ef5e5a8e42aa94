CREATE OR REPLACE FUNCTION public.tenants_keep_currency()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
            BEGIN
                RAISE EXCEPTION 'organization % keeps its currency, %: what it used is priced in it',
                    OLD.slug, OLD.currency
                    USING ERRCODE = 'check_violation', HINT = 'Create another organization for another currency.';
            END
            $function$;

CREATE TRIGGER keep_currency AFTER UPDATE ON tenants_organization FOR EACH ROW WHEN (new.currency::text <> old.currency::text) EXECUTE FUNCTION tenants_keep_currency();
