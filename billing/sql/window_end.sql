CREATE OR REPLACE FUNCTION public.billing_window_end(period text, zone text, at timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE
AS $function$
    SELECT CASE WHEN period <> 'life' THEN
        (date_trunc(period, at AT TIME ZONE zone) + ('1 ' || period)::interval) AT TIME ZONE zone END
$function$;
