CREATE OR REPLACE FUNCTION public.tenants_bump_revision()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
            BEGIN
                INSERT INTO tenants_revision AS revision (name, number) VALUES (TG_ARGV[0], 1)
                ON CONFLICT (name) DO UPDATE SET number = revision.number + 1;
                RETURN NULL;
            END
            $function$;

CREATE TRIGGER billing_account_revision_delete AFTER DELETE ON billing_account FOR EACH ROW WHEN (old.price_list_id IS NOT NULL) EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER billing_account_revision_insert AFTER INSERT ON billing_account FOR EACH ROW WHEN (new.price_list_id IS NOT NULL) EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER billing_account_revision_update AFTER UPDATE ON billing_account FOR EACH ROW WHEN (new.price_list_id IS DISTINCT FROM old.price_list_id) EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER billing_price_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON billing_price FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER billing_pricelist_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON billing_pricelist FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER gateway_backend_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON gateway_backend FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER gateway_model_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON gateway_model FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER gateway_route_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON gateway_route FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER tenants_apikey_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON tenants_apikey FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('principals');
CREATE TRIGGER tenants_limit_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON tenants_limit FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('principals');
CREATE TRIGGER tenants_organization_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON tenants_organization FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('principals');
CREATE TRIGGER tenants_team_revision AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON tenants_team FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('principals');
