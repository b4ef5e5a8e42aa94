CREATE OR REPLACE FUNCTION public.billing_stop_bookings()
 RETURNS void
 LANGUAGE plpgsql
AS $function$
DECLARE
    patience text := current_setting('lock_timeout');
BEGIN
    FOR attempt IN 1 .. 50 LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            LOCK TABLE billing_hold IN EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', patience, true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
    RAISE EXCEPTION 'the books are too busy to set a budget now: try again' USING ERRCODE = 'lock_not_available';
END $function$;
