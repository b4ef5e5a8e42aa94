CREATE OR REPLACE FUNCTION public.billing_create_partition(month timestamp without time zone)
 RETURNS boolean
 LANGUAGE plpgsql
 SET lock_timeout TO '5s'
AS $function$
DECLARE
    name text := to_char(month, '"billing_usagerecord_y"YYYY"m"MM');
    first uuid := billing_id_at(month AT TIME ZONE 'UTC');
    next uuid := billing_id_at((month + interval '1 month') AT TIME ZONE 'UTC');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('billing_create_partition'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM billing_usagerecord_default WHERE request_id >= first AND request_id < next) THEN
        RAISE WARNING '% is not created: the default partition has rows of it already', name;
        RETURN false;
    END IF;
    -- Attached and not created in place, as that would stop all bookings until the commit.
    EXECUTE format('CREATE TABLE %I (LIKE billing_usagerecord INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format(
        'ALTER TABLE billing_usagerecord ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, first, next);
    PERFORM billing_guard_partition(name);
    RETURN true;
END $function$;
