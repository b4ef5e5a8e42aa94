CREATE OR REPLACE FUNCTION public.billing_window_start(period text, zone text, at timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE
AS $function$
    SELECT CASE period WHEN 'life' THEN 'epoch'::timestamptz ELSE date_trunc(period, at, zone) END
$function$;
