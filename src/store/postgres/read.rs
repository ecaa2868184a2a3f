//! Reading the database, whether a daemon runs or not.
//!
//! Enters: an instant, a span. Leaves: what was stored.

use std::{collections::HashMap, fmt, ops::Range};

use async_trait::async_trait;
use sqlx::{Executor as _, PgConnection, query_as};

use super::{MIGRATIONS, connect, instant::Millis, text::restore, version};
use crate::{
    config::PostgresUrl,
    layout::Layout,
    moment::Moment,
    reading::Report,
    store::{
        self, Counts, Meter, Quarter, Quarters, Series, StoreError, Stored, Trouble,
        rows::{self, Message},
        unreadable,
    },
};

/// Reads a database, whether a daemon runs or not.
pub struct Reader {
    /// The URL as it may be shown.
    place: String,
    connection: PgConnection,
    layouts: HashMap<i64, Layout>,
    remarks: HashMap<i64, String>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({})", self.place)
    }
}

/// Most layouts and remarks that are remembered.
const REMEMBERED: usize = 10_000;

/// The columns of a message, and their values.
const COLUMNS: &str = r#"at, n::bigint, utc_offset::bigint, clock::bigint, received_at, layout, remark, "values""#;
type Columns = (Millis, i64, i64, i64, Millis, i64, Option<i64>, Vec<i64>);

/// The columns of a meter.
type MeterColumns = (i64, String, String, i64, String, String, Option<String>, Millis, Millis);

impl Reader {
    /// Opens the database, which must have its tables; nothing in it is changed.
    pub async fn open(url: &PostgresUrl) -> Result<Self, StoreError> {
        let place = url.to_string();
        let mut connection = connect(url).await?;
        let wrong = |error| StoreError::postgres(&place, error);
        // Whoever reads a year of messages may take longer than a commit; a mistake of ours changes nothing.
        connection.execute("SET statement_timeout = 0; SET default_transaction_read_only = on").await.map_err(wrong)?;
        match version(&mut connection).await.map_err(wrong)? {
            None => {
                Err(StoreError::Database { place, trouble: Trouble::NoTables, source: "no _sqlx_migrations".into() })
            }
            Some(version) if !MIGRATIONS.version_exists(version) => Err(StoreError::Newer { place, version }),
            Some(_) => Ok(Self { place, connection, layouts: HashMap::new(), remarks: HashMap::new() }),
        }
    }

    fn error(&self) -> impl Fn(sqlx::Error) -> StoreError + use<> {
        let place = self.place.clone();
        move |error| StoreError::postgres(&place, error)
    }

    /// Messages as they were stored.
    async fn stored(&mut self, messages: Vec<(&Meter, Message)>) -> Result<Vec<Stored>, sqlx::Error> {
        if self.layouts.len() > REMEMBERED || self.remarks.len() > REMEMBERED {
            (self.layouts, self.remarks) = Default::default();
        }
        let unknown = |message: &Message| (!self.layouts.contains_key(&message.layout)).then_some(message.layout);
        let layouts: Vec<i64> = messages.iter().filter_map(|(_, message)| unknown(message)).collect();
        let unknown = |message: &Message| message.remark.filter(|remark| !self.remarks.contains_key(remark));
        let remarks: Vec<(i64, i64)> =
            messages.iter().filter_map(|(meter, message)| Some((meter.id, unknown(message)?))).collect();
        if !layouts.is_empty() {
            let sql = "SELECT id, spec FROM layout WHERE id = ANY ($1)";
            let rows: Vec<(i64, String)> = query_as(sql).bind(layouts).fetch_all(&mut self.connection).await?;
            for (id, spec) in rows {
                self.layouts.insert(id, Layout::from_text(&spec).map_err(unreadable)?);
            }
        }
        if !remarks.is_empty() {
            let (meters, ids): (Vec<i64>, Vec<i64>) = remarks.into_iter().unzip();
            let sql =
                "SELECT DISTINCT ON (meter, id) id, content FROM unnest($1::bigint[], $2::bigint[]) AS said (meter, id)
                JOIN remark USING (meter, id)";
            let rows: Vec<(i64, String)> = query_as(sql).bind(meters).bind(ids).fetch_all(&mut self.connection).await?;
            // One that is not there went with its message since that was read.
            self.remarks.extend(rows);
        }
        let stored = |(meter, message): (&Meter, Message)| {
            let layout = self.layouts.get(&message.layout).ok_or(sqlx::Error::RowNotFound)?;
            let remark = message.remark.and_then(|remark| self.remarks.get(&remark));
            message.stored(meter, layout, remark.map(String::as_str))
        };
        messages.into_iter().map(stored).collect()
    }

    /// The first message of each of these meters that `which` chooses and sorts by an instant.
    async fn of_each(
        &mut self,
        meters: &[Meter],
        which: &str,
        at: i64,
    ) -> Result<Vec<(Report<String>, Moment)>, sqlx::Error> {
        let sql = format!(
            "SELECT said.id, {COLUMNS}
            FROM unnest($2::bigint[]) AS said (id)
            CROSS JOIN LATERAL (SELECT * FROM message WHERE meter = said.id AND {which} LIMIT 1) AS message"
        );
        let ids: Vec<i64> = meters.iter().map(|meter| meter.id).collect();
        type Row = (i64, Millis, i64, i64, i64, Millis, i64, Option<i64>, Vec<i64>);
        let rows: Vec<Row> =
            query_as(sqlx::AssertSqlSafe(sql)).bind(Millis(at)).bind(ids).fetch_all(&mut self.connection).await?;
        let mut found: HashMap<i64, Message> = HashMap::with_capacity(rows.len());
        for (meter, at, n, utc_offset, clock, received_at, layout, remark, values) in rows {
            found.insert(meter, read_message((at, n, utc_offset, clock, received_at, layout, remark, values)));
        }
        let messages = meters.iter().filter_map(|meter| Some((meter, found.remove(&meter.id)?))).collect();
        Ok(self.stored(messages).await?.into_iter().map(|stored| (stored.report, stored.received_at)).collect())
    }

    async fn every_meter(&mut self) -> Result<Vec<Meter>, sqlx::Error> {
        // Not every message writes `last_seen`.
        let sql = "SELECT id, name, medium, medium_code::bigint, protocol, gateway, predecessor, first_seen, greatest(last_seen,
                (SELECT received_at FROM message WHERE meter = meter.id ORDER BY at DESC, n DESC LIMIT 1)
            ) FROM meter";
        let rows: Vec<MeterColumns> = query_as(sql).fetch_all(&mut self.connection).await?;
        let meter = |(id, name, medium, code, protocol, gateway, predecessor, first, last): MeterColumns| {
            let predecessor = predecessor.map(restore);
            rows::meter((
                id,
                restore(name),
                medium,
                code,
                restore(protocol),
                restore(gateway),
                predecessor,
                first.0,
                last.0,
            ))
        };
        let mut meters = rows.into_iter().map(meter).collect::<Result<Vec<_>, _>>()?;
        // Here, because a name may be kept otherwise than it is.
        meters.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(meters)
    }
}

#[async_trait]
impl store::Reader for Reader {
    async fn readings_of(
        &mut self,
        meters: &[Meter],
        at: Option<Moment>,
    ) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let (error, at) = (self.error(), at.map_or(i64::MAX, Moment::millis));
        self.of_each(meters, "at <= $1 ORDER BY at DESC, n DESC", at).await.map_err(error)
    }

    async fn readings_after(
        &mut self,
        meters: &[Meter],
        at: Moment,
    ) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let error = self.error();
        self.of_each(meters, "at > $1 ORDER BY at, n DESC", at.millis()).await.map_err(error)
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM meter), (SELECT count(*) FROM message), (SELECT count(*) FROM refused)";
        let error = self.error();
        query_as(sql).fetch_one(&mut self.connection).await.map(rows::counts).map_err(error)
    }

    async fn meters(&mut self) -> Result<Vec<Meter>, StoreError> {
        let error = self.error();
        self.every_meter().await.map_err(error)
    }

    async fn series(&mut self, meter: &Meter) -> Result<Vec<Series>, StoreError> {
        let sql =
            "SELECT id, register, unit, scale::bigint FROM series WHERE meter = $1 ORDER BY register, unit, scale";
        let error = self.error();
        let rows: Vec<(i64, String, String, i64)> =
            query_as(sql).bind(meter.id).fetch_all(&mut self.connection).await.map_err(&error)?;
        rows.into_iter().map(|row| rows::series(meter.id, row)).collect::<Result<_, _>>().map_err(error)
    }

    async fn quarters(&mut self, series: &Series, which: &Quarters) -> Result<Vec<Quarter>, StoreError> {
        let error = self.error();
        let rows = match which {
            Quarters::All(span) => {
                let sql = "SELECT quarter, late::bigint, value FROM quarter
                    WHERE meter = $1 AND series = $2 AND quarter >= $3 AND quarter < $4 AND NOT unsynchronised ORDER BY quarter";
                let query = query_as(sql).bind(series.meter).bind(series.id).bind(span.start).bind(span.end);
                query.fetch_all(&mut self.connection).await
            }
            Quarters::Around { marks, each } => {
                let query = query_as(AROUND).bind(series.meter).bind(series.id).bind(marks).bind(i64::from(*each));
                query.fetch_all(&mut self.connection).await
            }
        };
        let rows: Vec<(i64, i64, i64)> = rows.map_err(&error)?;
        rows.into_iter().map(|row| rows::quarter(series, row)).collect::<Result<_, _>>().map_err(error)
    }

    async fn messages(
        &mut self,
        meter: &Meter,
        span: Range<i64>,
        after: Option<(i64, i64)>,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let (at, n) = after.unwrap_or((i64::MIN, -1));
        let error = self.error();
        let sql = format!(
            "SELECT {COLUMNS} FROM message WHERE meter = $1 AND at >= $2 AND at < $3 AND (at, n) > ($4, $5)
            ORDER BY at, n LIMIT $6"
        );
        let query = query_as(sqlx::AssertSqlSafe(sql)).bind(meter.id).bind(Millis(span.start)).bind(Millis(span.end));
        let query = query.bind(Millis(at)).bind(i32::try_from(n).unwrap_or(i32::MAX));
        let rows: Vec<Columns> = query
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&mut self.connection)
            .await
            .map_err(&error)?;
        self.stored(rows.into_iter().map(|row| (meter, read_message(row))).collect()).await.map_err(error)
    }
}

/// Of a series ($1 meter, $2 id) the values around marks ($3), so many of them ($4): see [`Quarters::Around`].
const AROUND: &str = "WITH mark AS (
        SELECT unnest($3::bigint[]) AS quarter
        UNION
        SELECT quarter FROM fall WHERE meter = $1 AND series = $2
            AND quarter BETWEEN (SELECT min(m) FROM unnest($3) AS m) AND (SELECT max(m) FROM unnest($3) AS m)
    ), near AS (
        (SELECT quarter FROM quarter WHERE meter = $1 AND series = $2 AND NOT unsynchronised ORDER BY quarter LIMIT 1)
        UNION
        (SELECT quarter FROM quarter WHERE meter = $1 AND series = $2 AND NOT unsynchronised ORDER BY quarter DESC LIMIT 1)
        UNION
        SELECT before.quarter FROM mark CROSS JOIN LATERAL (
            SELECT quarter FROM quarter
            WHERE meter = $1 AND series = $2 AND quarter.quarter < mark.quarter AND NOT unsynchronised
            ORDER BY quarter.quarter DESC LIMIT $4
        ) AS before
        UNION
        SELECT next.quarter FROM mark CROSS JOIN LATERAL (
            SELECT quarter FROM quarter
            WHERE meter = $1 AND series = $2 AND quarter.quarter >= mark.quarter AND NOT unsynchronised
            ORDER BY quarter.quarter LIMIT $4
        ) AS next
    )
    SELECT quarter, late::bigint, value FROM near JOIN quarter USING (quarter)
    WHERE meter = $1 AND series = $2 ORDER BY quarter";

fn read_message(columns: Columns) -> Message {
    let (at, n, utc_offset, clock, received_at, layout, remark, values) = columns;
    Message { at: at.0, n, utc_offset, clock, received_at: received_at.0, layout, remark, values }
}
