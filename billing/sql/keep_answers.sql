CREATE OR REPLACE FUNCTION public.billing_keep_answers(rows json)
 RETURNS void
 LANGUAGE sql
AS $function$
    UPDATE billing_idempotentrequest c SET answer = convert_to(given.answer, 'UTF8')
    FROM json_to_recordset(rows) AS given (request_id uuid, answer text)
    WHERE given.answer IS NOT NULL AND c.request_id = given.request_id
$function$;
