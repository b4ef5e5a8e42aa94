CREATE OR REPLACE FUNCTION public.billing_move(windows bigint[], unheld_pico bigint[], unheld_tokens bigint[], spent_pico bigint[], spent_tokens bigint[])
 RETURNS void
 LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM FROM billing_budgetwindow w WHERE w.id = ANY(windows) ORDER BY w.id FOR UPDATE;
    UPDATE billing_budgetwindow w
    SET held_pico = w.held_pico - moved.unheld_pico, held_tokens = w.held_tokens - moved.unheld_tokens,
        spent_pico = w.spent_pico + moved.spent_pico, spent_tokens = w.spent_tokens + moved.spent_tokens
    FROM (
        SELECT id, sum(m.unheld_pico) AS unheld_pico, sum(m.unheld_tokens) AS unheld_tokens,
               sum(m.spent_pico) AS spent_pico, sum(m.spent_tokens) AS spent_tokens
        FROM unnest(windows, unheld_pico, unheld_tokens, spent_pico, spent_tokens)
             m (id, unheld_pico, unheld_tokens, spent_pico, spent_tokens)
        GROUP BY id) moved
    WHERE w.id = moved.id;
END $function$;
