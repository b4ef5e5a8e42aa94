CREATE OR REPLACE FUNCTION public.billing_create_partitions(months_ahead integer, since timestamp with time zone DEFAULT now())
 RETURNS integer
 LANGUAGE sql
AS $function$
    SELECT count(*)::integer FROM generate_series(
        date_trunc('month', since AT TIME ZONE 'UTC'),
        date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => months_ahead), '1 month') month
    WHERE billing_create_partition(month)
$function$;
