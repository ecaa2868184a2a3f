-- Finished hours as compressed blocks.

-- All messages of one meter and one layout that were measured in a span, as bytes. Spans of a meter are the same or do not overlap.
-- Late messages stand in `message` until the next seal.
CREATE TABLE sealed (
    id       INTEGER PRIMARY KEY,
    meter    INTEGER NOT NULL REFERENCES meter (id),
    -- The span: an hour, or for a meter that speaks rarely what of a day (UTC) is not sealed by hours.
    from_at  INTEGER NOT NULL,
    -- The first instant behind it.
    until_at INTEGER NOT NULL,
    -- What the values mean.
    layout   INTEGER NOT NULL REFERENCES layout (id),
    -- How many messages.
    messages INTEGER NOT NULL,
    -- When the first was measured.
    first_at INTEGER NOT NULL,
    -- When the last was measured.
    last_at  INTEGER NOT NULL,
    -- See the module `sealed`: at, n, utc_offset, clock, received_at, remark and values of each message.
    block    BLOB NOT NULL,
    UNIQUE (meter, from_at, layout)
) STRICT;

-- `meter.messages` counts both.
CREATE TRIGGER sealed_in AFTER INSERT ON sealed BEGIN
    UPDATE meter SET messages = messages + new.messages WHERE id = new.meter;
END;

CREATE TRIGGER sealed_out AFTER DELETE ON sealed BEGIN
    UPDATE meter SET messages = messages - old.messages WHERE id = old.meter;
END;

-- How large the database was at the end of each day (UTC), so that its growth can be told.
CREATE TABLE size (
    -- Days since 1970.
    day   INTEGER PRIMARY KEY,
    -- Its file and its log.
    bytes INTEGER NOT NULL
) STRICT;
