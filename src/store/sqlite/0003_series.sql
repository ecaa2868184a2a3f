-- Quarter-hours without the texts that each row repeated, and where a counter fell.

ALTER TABLE quarter RENAME TO quarter_before;

-- The values of one register of one meter in one unit, with one number of decimals.
CREATE TABLE series (
    id       INTEGER PRIMARY KEY,
    meter    INTEGER NOT NULL REFERENCES meter (id),
    -- Such as import_low; only values as they stand now (storage, tariff and subunit 0).
    register TEXT NOT NULL,
    -- kWh, kvarh, GJ, m3...
    unit     TEXT NOT NULL,
    -- How many digits of its values stand behind the point.
    scale    INTEGER NOT NULL,
    UNIQUE (meter, register, unit, scale)
) STRICT;

INSERT INTO series (meter, register, unit, scale) SELECT DISTINCT meter, register, unit, scale FROM quarter_before;

-- Cumulative registers at the first telegram of each quarter-hour, suspect values left out. Kept for ever: retention does not
-- touch it.
CREATE TABLE quarter (
    meter   INTEGER NOT NULL REFERENCES meter (id),
    series  INTEGER NOT NULL REFERENCES series (id),
    -- The quarter-hour: seconds since 1970 UTC / 900, rounded down.
    quarter INTEGER NOT NULL,
    -- When it was measured: milliseconds since the quarter-hour began.
    late    INTEGER NOT NULL,
    -- 1 when only the gateway's clock could say when, and it was not synchronised; else 0. A 0 replaces a 1.
    unsynchronised INTEGER NOT NULL,
    -- The digits: the register is value / 10^scale.
    value   INTEGER NOT NULL,
    PRIMARY KEY (meter, series, quarter)
) STRICT, WITHOUT ROWID;

INSERT INTO quarter
SELECT meter, series.id, quarter, at - quarter * 900000, unsynchronised, value
FROM quarter_before JOIN series USING (meter, register, unit, scale);

DROP TABLE quarter_before;

-- Where a value is lower than the one before it, synchronised clocks only: few rows, so that a year's consumption needs
-- no look at each of its quarter-hours.
CREATE TABLE fall (
    meter   INTEGER NOT NULL,
    series  INTEGER NOT NULL,
    quarter INTEGER NOT NULL,
    PRIMARY KEY (meter, series, quarter)
) STRICT, WITHOUT ROWID;

INSERT INTO fall
SELECT meter, series, quarter FROM (
    SELECT meter, series, quarter, value - lag(value) OVER (PARTITION BY meter, series ORDER BY quarter) AS difference
    FROM quarter WHERE unsynchronised = 0
) WHERE difference < 0;

-- The meter whose place it took, where its gateway saw that; else NULL.
ALTER TABLE meter ADD COLUMN predecessor TEXT;

-- For reading with SQL: the registers at each quarter-hour, values as exact decimals. Ask by meter and quarter.
--   meter, medium   as in the table meter
--   register, unit  such as import_low, kWh
--   unix_s          when the quarter-hour began, seconds since 1970 UTC
--   measured_at     when the value was measured, as text in UTC
--   value           the exact decimal as text
--   unsynchronised  1 where the clock behind measured_at was not synchronised
CREATE VIEW quarter_hour AS
SELECT
    meter.name AS meter, meter.medium, register, quarter * 900 AS unix_s,
    strftime('%Y-%m-%dT%H:%M:%S', quarter * 900 + late / 1000, 'unixepoch') || printf('.%03dZ', late % 1000) AS measured_at,
    iif(value < 0, '-', '') || substr(printf('%0*d', scale + 1, abs(value)), 1, length(printf('%0*d', scale + 1, abs(value))) - scale)
        || iif(scale > 0, '.' || substr(printf('%0*d', scale + 1, abs(value)), -scale), '') AS value,
    unit, unsynchronised
FROM quarter JOIN series ON series.id = quarter.series JOIN meter ON meter.id = quarter.meter;
