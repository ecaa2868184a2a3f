-- Messages refused for a newer schema are read again after an upgrade.

-- The newest schema that the meterkast could read which looked at the message last. Where this build reads more, and
-- `schema` is within it, the message is read again at the start. The first version of these tables read schema 1.
ALTER TABLE refused ADD COLUMN readable INTEGER NOT NULL DEFAULT 1;
