-- A database for meterkast in PostgreSQL 15 or newer, and who may do what in it. Once, as the server's superuser:
--
--     sudo -u postgres psql -f postgres.sql
--     sudo -u postgres psql -c '\password meterkast' -c '\password meterkast_reader'
--
-- The tables are made by the first store that starts as `meterkast`.
\set ON_ERROR_STOP on

-- Makes the tables, and changes them after an upgrade; a store may run as this user.
CREATE ROLE meterkast LOGIN;
-- Writes, and may not change the tables: for stores where somebody else upgrades.
CREATE ROLE meterkast_writer LOGIN;
-- Reads: for `meterkast usage`, Grafana, and whoever knows SQL.
CREATE ROLE meterkast_reader LOGIN;

-- Meters send any text, so it must be UTF-8, whatever the server's language.
CREATE DATABASE meterkast OWNER meterkast ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;
REVOKE CONNECT ON DATABASE meterkast FROM PUBLIC;
GRANT CONNECT ON DATABASE meterkast TO meterkast_writer, meterkast_reader;

\connect meterkast
GRANT USAGE ON SCHEMA public TO meterkast_writer, meterkast_reader;
-- Of the tables that `meterkast` is going to make.
ALTER DEFAULT PRIVILEGES FOR ROLE meterkast IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO meterkast_writer;
ALTER DEFAULT PRIVILEGES FOR ROLE meterkast IN SCHEMA public GRANT SELECT ON TABLES TO meterkast_reader;

-- Where TimescaleDB is installed, the store uses it by itself.
SELECT 'CREATE EXTENSION IF NOT EXISTS timescaledb' FROM pg_available_extensions WHERE name = 'timescaledb' \gexec
