-- What a meter's own clock says stands among the values.

-- On a bus it says another time in each readout, and each would be a remark of its own. The last object of `layout.spec` may therefore
-- be {"info":"meter_time","place","at"}, without a register: that line stands at `place` (from 0) among those of the remark, and its instant
-- at `at` in the values (milliseconds since 1970 UTC, then minutes east of UTC). Messages that were written before have it in their remarks.

DROP VIEW reading;

-- For reading with SQL: every reading of every message, values as exact decimals. Ask by meter and unix_ms, which
-- have an index: SELECT * FROM reading WHERE meter = 'E0043007052870318' AND unix_ms >= unixepoch('2026-11-21') * 1000.
--   meter, medium   as in the table meter
--   unix_ms, n      the key of the message: when it was measured
--   measured_at     the same as text in UTC: 2026-11-21T19:00:00.000Z
--   clock           meter, telegram, gateway or unsynchronised
--   register, unit  such as import_low, kWh
--   value           the exact decimal as text: -0.50
--   storage, tariff, subunit, function   0, 0, 0 and NULL: the value as it stands now
--   at              the reading's own time where it differs (a set day), as text in UTC; else NULL
--   suspect         backwards or too_fast where the value is not believed; else NULL
CREATE VIEW reading AS
WITH part AS (
    SELECT
        meter.name AS meter, meter.medium, message.at AS unix_ms, message.n, message.clock,
        reading.value AS reading,
        reading.value ->> 'scale' AS scale,
        message."values" ->> reading.key AS value,
        printf('%0*d', (reading.value ->> 'scale') + 1, abs(message."values" ->> reading.key)) AS digits,
        message."values" ->> (reading.value ->> 'at') AS at,
        -- Milliseconds within the second, also before 1970.
        (message.at % 1000 + 1000) % 1000 AS ms,
        ((message."values" ->> (reading.value ->> 'at')) % 1000 + 1000) % 1000 AS at_ms
    FROM message
    JOIN meter ON meter.id = message.meter
    JOIN layout ON layout.id = message.layout
    JOIN json_each(layout.spec) AS reading
    -- All but the meter's own clock.
    WHERE reading.value ->> 'register' IS NOT NULL
)
SELECT
    meter, medium, unix_ms, n,
    strftime('%Y-%m-%dT%H:%M:%S', (unix_ms - ms) / 1000, 'unixepoch') || printf('.%03dZ', ms) AS measured_at,
    CASE clock WHEN 0 THEN 'meter' WHEN 1 THEN 'telegram' WHEN 2 THEN 'gateway' ELSE 'unsynchronised' END AS clock,
    reading ->> 'register' AS register,
    iif(value < 0, '-', '') || substr(digits, 1, length(digits) - scale)
        || iif(scale > 0, '.' || substr(digits, -scale), '') AS value,
    reading ->> 'unit' AS unit,
    coalesce(reading ->> 'storage', 0) AS storage,
    coalesce(reading ->> 'tariff', 0) AS tariff,
    coalesce(reading ->> 'subunit', 0) AS subunit,
    reading ->> 'function' AS function,
    strftime('%Y-%m-%dT%H:%M:%S', (at - at_ms) / 1000, 'unixepoch') || printf('.%03dZ', at_ms) AS at,
    reading ->> 'suspect' AS suspect
FROM part;
