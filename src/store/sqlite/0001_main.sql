-- The SQLite store. All instants are integers: milliseconds since 1970-01-01T00:00:00Z, unless said otherwise.
-- All values are integers: the digits without the point, beside them the number of decimals ("scale").

-- One row: this database.
CREATE TABLE store (
    -- Always 1: there is one row.
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    -- 128 random bits in hex. Gateways forget what a store confirmed when this changes, so after putting back a
    -- backup `DELETE FROM store`: the next start draws a new one, and the gateways send what they still hold.
    generation TEXT NOT NULL,
    -- When the generation was drawn.
    created_at INTEGER NOT NULL
) STRICT;

-- A meter, and how it was last heard.
CREATE TABLE meter (
    id          INTEGER PRIMARY KEY,
    -- What it says of itself, such as E0043007052870318 or KAM-12345678-1B-04.
    name        TEXT NOT NULL UNIQUE,
    -- electricity, gas, heat, cooling, heat_cooling, hot_water, water or other.
    medium      TEXT NOT NULL,
    -- The device type of EN 13757-3 where medium is other, else 0.
    medium_code INTEGER NOT NULL,
    -- p1 or mbus.
    protocol    TEXT NOT NULL,
    -- The gateway it was last received by.
    gateway     TEXT NOT NULL,
    -- When its first message was received, by the gateway's clock.
    first_seen  INTEGER NOT NULL,
    -- When its last message was received, by the gateway's clock.
    last_seen   INTEGER NOT NULL,
    -- How many rows `message` has of it; kept by triggers, because counting them reads the whole table.
    messages    INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What the values of a message mean. Few rows: a meter sends the same registers in every telegram.
CREATE TABLE layout (
    id   INTEGER PRIMARY KEY,
    -- JSON array, an object for each reading: register, unit, scale; where not zero storage, tariff, subunit; where
    -- not none function, suspect, at (place in the values of its own time: milliseconds, then minutes east of UTC),
    -- raw {unit, scale, value: place in the values} as the meter counts.
    spec TEXT NOT NULL UNIQUE
) STRICT;

-- What a meter says besides its readings. A row for each different remark, not for each message.
CREATE TABLE remark (
    id       INTEGER PRIMARY KEY,
    meter    INTEGER NOT NULL REFERENCES meter (id),
    -- JSON: {"info":[[name,text]],"events":[[event,end,duration_s]],"unknown":[[code,text]]}.
    content  TEXT NOT NULL,
    -- The time of the oldest message that came with it.
    first_at INTEGER NOT NULL,
    -- The time of the newest message that came with it.
    last_at  INTEGER NOT NULL,
    UNIQUE (meter, content)
) STRICT;

-- One row a message: what one meter said at one moment.
CREATE TABLE message (
    meter       INTEGER NOT NULL REFERENCES meter (id),
    -- When it was measured.
    at          INTEGER NOT NULL,
    -- 0; 1, 2... for further messages of the same instant with different readings.
    n           INTEGER NOT NULL,
    -- Minutes east of UTC that the clock behind `at` stood.
    utc_offset  INTEGER NOT NULL,
    -- Whose clock: 0 the meter's, 1 the telegram's, 2 the gateway's, 3 the gateway's before it was synchronised.
    clock       INTEGER NOT NULL,
    -- When the gateway received it, by its own clock.
    received_at INTEGER NOT NULL,
    -- What the values mean.
    layout      INTEGER NOT NULL REFERENCES layout (id),
    -- JSON array of integers: the digits of each reading, then what the layout points to.
    "values"    TEXT NOT NULL,
    -- `remark.id`; NULL when it says nothing else. Not declared as a reference: checking it would need an index
    -- over all messages.
    remark      INTEGER,
    PRIMARY KEY (meter, at, n)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER message_in AFTER INSERT ON message BEGIN
    UPDATE meter SET messages = messages + 1 WHERE id = new.meter;
END;

CREATE TRIGGER message_out AFTER DELETE ON message BEGIN
    UPDATE meter SET messages = messages - 1 WHERE id = old.meter;
END;

-- Cumulative registers at the first telegram of each quarter-hour. Kept for ever: retention does not touch it.
CREATE TABLE quarter (
    meter    INTEGER NOT NULL REFERENCES meter (id),
    -- Such as import_low; only values as they stand now (storage, tariff and subunit 0), not suspect.
    register TEXT NOT NULL,
    -- The quarter-hour: seconds since 1970 UTC / 900, rounded down.
    quarter  INTEGER NOT NULL,
    -- When it was measured, within the quarter-hour.
    at       INTEGER NOT NULL,
    -- 1 when only the gateway's clock could say when, and it was not synchronised; else 0. A 0 replaces a 1.
    unsynchronised INTEGER NOT NULL,
    -- The digits: the register is value / 10^scale.
    value    INTEGER NOT NULL,
    -- How many of the digits stand behind the point.
    scale    INTEGER NOT NULL,
    -- kWh, kvarh, GJ, m3...
    unit     TEXT NOT NULL,
    PRIMARY KEY (meter, register, quarter)
) STRICT, WITHOUT ROWID;

-- What has arrived from each run (epoch) of each gateway: what the acknowledgements say.
CREATE TABLE ledger (
    -- The gateway's id.
    gateway  TEXT NOT NULL,
    -- 32 hex digits, new at every start of the gateway.
    epoch    TEXT NOT NULL,
    -- The watermark: every message up to this number arrived or is lost.
    through  INTEGER NOT NULL,
    -- JSON [[from,to]]: what arrived beyond.
    have     TEXT NOT NULL,
    -- JSON [[from,to]]: what never arrived and is gone at the gateway.
    lost     TEXT NOT NULL,
    -- How many of its messages were written.
    stored   INTEGER NOT NULL,
    -- How many were there already: same meter, instant and readings.
    repeated INTEGER NOT NULL,
    -- How many could not be read.
    refused  INTEGER NOT NULL,
    -- Grows with each commit that touches the gateway: the highest is the latest. No clock in it, so that a clock
    -- that steps back does not hide the epoch that is live.
    touched  INTEGER NOT NULL,
    PRIMARY KEY (gateway, epoch)
) STRICT, WITHOUT ROWID;

-- The ledger with the place of each epoch among its gateway's: 1 is the one touched last.
CREATE VIEW ledger_newest AS
SELECT *, row_number() OVER (PARTITION BY gateway ORDER BY touched DESC, epoch) AS place FROM ledger;

-- Messages that could not be read, as they came. The oldest go beyond 10,000 rows or 64 MiB.
CREATE TABLE refused (
    -- Ascending in the order of arrival.
    id          INTEGER PRIMARY KEY,
    -- When the store received it.
    received_at INTEGER NOT NULL,
    -- The MQTT topic it came on.
    topic       TEXT NOT NULL,
    -- The gateway it says it is from; NULL, like epoch and seq, when not even that could be read.
    gateway     TEXT,
    -- The gateway's run.
    epoch       TEXT,
    -- Its number in the run.
    seq         INTEGER,
    -- The payload's schema; 0 when unknown.
    schema      INTEGER NOT NULL,
    -- Why it was refused.
    reason      TEXT NOT NULL,
    -- The message itself.
    payload     BLOB NOT NULL
) STRICT;

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
