CREATE OR REPLACE FUNCTION public.tenants_refuse_change()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
            BEGIN
                RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
                    USING ERRCODE = 'restrict_violation';
            END
            $function$;

CREATE TRIGGER tenants_auditentry_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON tenants_auditentry FOR EACH STATEMENT EXECUTE FUNCTION tenants_refuse_change();
