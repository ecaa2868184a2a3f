-- The store in PostgreSQL. All values are integers: the digits without the point, beside them the number of decimals ("scale").
-- Texts compare by their bytes (COLLATE "C"), so that the order does not depend on where the server runs. PostgreSQL keeps no NUL
-- in a text: it stands as the sign ␀ (U+2400), the sign itself as ␛␀, and ␛ (U+241B) as ␛␛.
-- What a table is to be distributed by (Citus) comes first in its primary key: the meter, or the gateway of a ledger. There are no
-- foreign keys and no triggers.

-- One row: this database.
CREATE TABLE store (
    -- Always 1: there is one row.
    id         smallint PRIMARY KEY CHECK (id = 1),
    -- 128 random bits in hex. Gateways forget what a store confirmed when this changes, so after bringing back a backup while a
    -- store runs `DELETE FROM store`: the next start draws a new one, and the gateways send what they still hold.
    generation text NOT NULL,
    -- When the generation was drawn.
    created_at timestamptz NOT NULL DEFAULT now(),
    -- 128 random bits in hex, drawn by the store that opened this database last. All stores that write it acknowledge under it.
    started    text NOT NULL,
    -- Grows when a meter is forgotten, or something of it, or a remark goes: what stores remember of the tables is then asked anew.
    deleted    bigint NOT NULL DEFAULT 0
);

-- A meter, and how it was last heard.
CREATE TABLE meter (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- What it says of itself, such as E0043007052870318 or KAM-12345678-1B-04.
    name        text COLLATE "C" NOT NULL UNIQUE,
    -- electricity, gas, heat, cooling, heat_cooling, hot_water, water or other.
    medium      text NOT NULL,
    -- The device type of EN 13757-3 where medium is other, else 0.
    medium_code smallint NOT NULL,
    -- p1 or mbus.
    protocol    text NOT NULL,
    -- The gateway it was last received by.
    gateway     text NOT NULL,
    -- The meter whose place it took, where its gateway saw that.
    predecessor text,
    -- When its first message was received, by the gateway's clock.
    first_seen  timestamptz NOT NULL,
    -- When its last message was received, by the gateway's clock; up to a quarter-hour before that.
    last_seen   timestamptz NOT NULL
) WITH (fillfactor = 50); -- Rows change all the time, and their pages have room for that.

-- What the values of a message mean. Few rows: a meter sends the same registers in every telegram.
CREATE TABLE layout (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- SHA-256 of the spec: an index takes no text of any length.
    digest bytea NOT NULL UNIQUE,
    -- JSON array, an object for each reading: register, unit, scale; where not zero storage, tariff, subunit; where
    -- not none function, suspect, at (place in the values, from 0, of its own time: milliseconds, then minutes east of UTC),
    -- raw {unit, scale, value: place in the values} as the meter counts. The last may be {"info":"meter_time","place","at"}, without a
    -- register: what the clock of a meter on a bus says. That line stands at `place` (from 0) among those of the remark, and its instant at
    -- `at` in the values. So readouts that differ in nothing else have one remark.
    spec   text NOT NULL
);

-- What a meter says besides its readings. A row for each different remark, not for each message.
CREATE TABLE remark (
    meter    bigint NOT NULL,
    id       bigint GENERATED ALWAYS AS IDENTITY,
    -- SHA-256 of the content.
    digest   bytea NOT NULL,
    -- JSON: {"info":[[name,text]],"events":[[event,end,duration_s]],"unknown":[[code,text]]}.
    content  text NOT NULL,
    -- The time of the oldest message that came with it.
    first_at timestamptz NOT NULL,
    -- Not before the newest message that came with it, and less than a quarter-hour after: not every message writes here.
    last_at  timestamptz NOT NULL,
    PRIMARY KEY (meter, id),
    UNIQUE (meter, digest)
) WITH (fillfactor = 50);

-- One row a message: what one meter said at one moment. A hypertable of days where TimescaleDB is, compressed after two.
CREATE TABLE message (
    meter       bigint NOT NULL,
    -- When it was measured.
    at          timestamptz NOT NULL,
    -- 0; 1, 2... for further messages of the same instant with different readings.
    n           integer NOT NULL,
    -- Minutes east of UTC that the clock behind `at` stood.
    utc_offset  smallint NOT NULL,
    -- Whose clock: 0 the meter's, 1 the telegram's, 2 the gateway's, 3 the gateway's before it was synchronised.
    clock       smallint NOT NULL,
    -- When the gateway received it, by its own clock.
    received_at timestamptz NOT NULL,
    -- What the values mean.
    layout      bigint NOT NULL,
    -- The digits of each reading, then what the layout points to.
    "values"    bigint[] NOT NULL,
    -- The remark's id; NULL when it says nothing else.
    remark      bigint,
    PRIMARY KEY (meter, at, n)
);

-- The values of one register of one meter in one unit, with one number of decimals.
CREATE TABLE series (
    meter    bigint NOT NULL,
    id       bigint GENERATED ALWAYS AS IDENTITY,
    -- Such as import_low; only values as they stand now (storage, tariff and subunit 0).
    register text COLLATE "C" NOT NULL,
    -- kWh, kvarh, GJ, m3...
    unit     text COLLATE "C" NOT NULL,
    -- How many digits of its values stand behind the point.
    scale    smallint NOT NULL,
    PRIMARY KEY (meter, id),
    UNIQUE (meter, register, unit, scale)
);

-- Cumulative registers at the first telegram of each quarter-hour, suspect values left out. Kept for ever: retention does not
-- touch it.
CREATE TABLE quarter (
    meter          bigint NOT NULL,
    series         bigint NOT NULL,
    -- The quarter-hour: seconds since 1970 UTC / 900, rounded down.
    quarter        bigint NOT NULL,
    -- When it was measured: milliseconds since the quarter-hour began.
    late           integer NOT NULL,
    -- Whether only the gateway's clock could say when, and it was not synchronised. What is not replaces what is.
    unsynchronised boolean NOT NULL,
    -- The digits: the register is value / 10^scale.
    value          bigint NOT NULL,
    PRIMARY KEY (meter, series, quarter)
);

-- Where a value is lower than the one before it, synchronised clocks only: few rows, so that a year's consumption needs
-- no look at each of its quarter-hours.
CREATE TABLE fall (
    meter   bigint NOT NULL,
    series  bigint NOT NULL,
    quarter bigint NOT NULL,
    PRIMARY KEY (meter, series, quarter)
);

-- What has arrived from each run (epoch) of each gateway: what the acknowledgements say. A store that commits holds the rows of
-- the runs in its batch.
CREATE TABLE ledger (
    -- The gateway's id.
    gateway  text COLLATE "C" NOT NULL,
    -- 32 hex digits, new at every start of the gateway.
    epoch    text COLLATE "C" NOT NULL,
    -- The watermark: every message up to this number arrived or is lost.
    through  bigint NOT NULL,
    -- JSON [[from,to]]: what arrived beyond.
    have     text NOT NULL,
    -- JSON [[from,to]]: what never arrived and is gone at the gateway.
    lost     text NOT NULL,
    -- How many of its messages were written.
    stored   bigint NOT NULL,
    -- How many were there already: same meter, instant and readings.
    repeated bigint NOT NULL,
    -- How many could not be read.
    refused  bigint NOT NULL,
    -- Grows with each commit that touches the gateway: the highest is the latest. No clock in it, so that a clock
    -- that steps back does not hide the epoch that is live.
    touched  bigint NOT NULL,
    PRIMARY KEY (gateway, epoch)
) WITH (fillfactor = 50);

-- The ledger with the place of each epoch among its gateway's: 1 is the one touched last.
CREATE VIEW ledger_newest AS
SELECT *, row_number() OVER (PARTITION BY gateway ORDER BY touched DESC, epoch) AS place FROM ledger;

-- Messages that could not be read, as they came. The oldest go beyond 10,000 rows or 64 MiB.
CREATE TABLE refused (
    -- Ascending in the order of arrival.
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- When the store received it.
    received_at timestamptz NOT NULL,
    -- The MQTT topic it came on.
    topic       text NOT NULL,
    -- The gateway it says it is from; NULL, like epoch and seq, when not even that could be read.
    gateway     text,
    -- The gateway's run.
    epoch       text,
    -- Its number in the run.
    seq         bigint,
    -- The payload's schema; 0 when unknown.
    schema      bigint NOT NULL,
    -- The newest schema that the meterkast could read which looked at the message last. Where this build reads more, and
    -- `schema` is within it, the message is read again at the start.
    readable    bigint NOT NULL,
    -- Why it was refused.
    reason      text NOT NULL,
    -- The message itself.
    payload     bytea NOT NULL
);

-- How large the database was at the end of each day (UTC), so that its growth can be told.
CREATE TABLE size (
    -- Days since 1970.
    day   bigint PRIMARY KEY,
    bytes bigint NOT NULL
);

-- For reading with SQL: every reading of every message. Ask by meter and measured_at, which have an index:
-- SELECT * FROM reading WHERE meter = 'E0043007052870318' AND measured_at >= '2026-11-21' AND register = 'import_low'.
--   meter, medium   as in the table meter
--   unix_ms, n      the key of the message: when it was measured, milliseconds since 1970 UTC
--   measured_at     the same instant
--   clock           meter, telegram, gateway or unsynchronised
--   register, unit  such as import_low, kWh
--   value           the exact decimal: -0.50
--   storage, tariff, subunit, function   0, 0, 0 and NULL: the value as it stands now
--   at              the reading's own time where it differs (a set day); else NULL
--   suspect         backwards or too_fast where the value is not believed; else NULL
CREATE VIEW reading AS
SELECT
    meter.name AS meter, meter.medium,
    floor(extract(epoch FROM message.at) * 1000)::bigint AS unix_ms, message.n, message.at AS measured_at,
    CASE clock WHEN 0 THEN 'meter' WHEN 1 THEN 'telegram' WHEN 2 THEN 'gateway' ELSE 'unsynchronised' END AS clock,
    reading ->> 'register' AS register,
    -- As many decimals as the meter has: 7603210e-3 is 7603.210.
    (message."values"[place]::text || 'e-' || (reading ->> 'scale'))::numeric AS value,
    reading ->> 'unit' AS unit,
    coalesce((reading ->> 'storage')::numeric, 0) AS storage,
    coalesce((reading ->> 'tariff')::bigint, 0) AS tariff,
    coalesce((reading ->> 'subunit')::integer, 0) AS subunit,
    reading ->> 'function' AS function,
    'epoch'::timestamptz + message."values"[(reading ->> 'at')::integer + 1] * interval '1 millisecond' AS at,
    reading ->> 'suspect' AS suspect
FROM message
JOIN meter ON meter.id = message.meter
JOIN layout ON layout.id = message.layout
CROSS JOIN jsonb_array_elements(layout.spec::jsonb) WITH ORDINALITY AS reading (reading, place)
-- All but the meter's own clock.
WHERE reading ? 'register';

-- For reading with SQL: the registers at each quarter-hour. Ask by meter and unix_s / 900, or by a span of measured_at that is not large.
--   meter, medium   as in the table meter
--   register, unit  such as import_low, kWh
--   unix_s          when the quarter-hour began, seconds since 1970 UTC
--   measured_at     when the value was measured
--   value           the exact decimal
--   unsynchronised  whether the clock behind measured_at was not synchronised
CREATE VIEW quarter_hour AS
SELECT
    meter.name AS meter, meter.medium, register, quarter * 900 AS unix_s,
    'epoch'::timestamptz + (quarter * 900000 + late) * interval '1 millisecond' AS measured_at,
    (value::text || 'e-' || scale)::numeric AS value,
    unit, unsynchronised
FROM quarter
JOIN series ON series.meter = quarter.meter AND series.id = quarter.series
JOIN meter ON meter.id = quarter.meter;
