CREATE OR REPLACE FUNCTION public.billing_claim(key bigint, idempotency_key text, body_sha256 text, request_id uuid, at timestamp with time zone)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    claim billing_idempotentrequest;
BEGIN
    INSERT INTO billing_idempotentrequest (key_id, idempotency_key, body_sha256, request_id, created_at)
    VALUES (billing_claim.key, billing_claim.idempotency_key, billing_claim.body_sha256, billing_claim.request_id, at)
    ON CONFLICT (key_id, idempotency_key) DO NOTHING;
    SELECT * INTO claim FROM billing_idempotentrequest c
    WHERE c.key_id = billing_claim.key AND c.idempotency_key = billing_claim.idempotency_key FOR UPDATE;
    IF claim.request_id = billing_claim.request_id THEN
        RETURN 'held';
    END IF;
    IF claim.answer IS NULL AND NOT EXISTS (SELECT FROM billing_hold h WHERE h.request_id = claim.request_id) THEN
        UPDATE billing_idempotentrequest c
        SET request_id = billing_claim.request_id, body_sha256 = billing_claim.body_sha256, created_at = at
        WHERE c.id = claim.id;
        RETURN 'held';
    END IF;
    RETURN json_build_object(
        'type', 'claimed', 'claimed_by', claim.request_id,
        'is_same_body', claim.body_sha256 = billing_claim.body_sha256, 'is_answered', claim.answer IS NOT NULL);
END $function$;
