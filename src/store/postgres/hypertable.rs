//! TimescaleDB, where the database has it: messages in a hypertable of days, compressed after two.
//!
//! Enters: a connection. Leaves: nothing, or a word in the log about what it could not have; the store works without.

use sqlx::{Executor as _, PgConnection, query_as, query_scalar, raw_sql};

/// What makes a plain table a hypertable. Messages that are there move.
const MAKE: &str =
    "SELECT create_hypertable('message', 'at', chunk_time_interval => interval '1 day', migrate_data => true)";
/// A meter's messages of a time stand together. The key's own order, so that late messages find their place.
const COMPRESS: &str = "ALTER TABLE message SET (timescaledb.compress, timescaledb.compress_segmentby = 'meter', timescaledb.compress_orderby = 'at, n')";
const POLICY: &str = "SELECT add_compression_policy('message', interval '2 days')";

/// Makes `message` a hypertable and has it compressed, where that can be and is not so.
pub(super) async fn prepare(connection: &mut PgConnection, place: &str) -> Result<(), sqlx::Error> {
    let there = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')";
    if !query_scalar(there).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    connection.execute("SELECT pg_advisory_lock(7236845732177568609)").await?;
    let made = make(connection, place).await;
    connection.execute("SELECT pg_advisory_unlock(7236845732177568609)").await?;
    made
}

async fn make(connection: &mut PgConnection, place: &str) -> Result<(), sqlx::Error> {
    // Late messages may belong into many compressed blocks at once.
    connection.execute("SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0").await?;
    let state = "SELECT compression_enabled, EXISTS (
            SELECT FROM timescaledb_information.jobs
            WHERE proc_name IN ('policy_compression', 'policy_columnstore')
                AND hypertable_schema = hypertables.hypertable_schema AND hypertable_name = hypertables.hypertable_name
        )
        FROM timescaledb_information.hypertables
        WHERE hypertable_schema = current_schema() AND hypertable_name = 'message'";
    let state: Option<(bool, bool)> = query_as(state).fetch_optional(&mut *connection).await?;
    let steps: &[&'static str] = match state {
        None => &[MAKE, COMPRESS, POLICY],
        Some((false, _)) => &[COMPRESS, POLICY],
        Some((true, false)) => &[POLICY],
        Some((true, true)) => &[],
    };
    for step in steps {
        match raw_sql(*step).execute(&mut *connection).await {
            Ok(_) => {}
            // A licence or a right may be missing.
            Err(error @ sqlx::Error::Database(_)) => {
                tracing::warn!("store: {place}: TimescaleDB is there, and not all of it can be used: {error}");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    if !steps.is_empty() {
        tracing::info!("store: {place}: messages stand in a hypertable of TimescaleDB, compressed after two days");
    }
    Ok(())
}
