"""Reads exports of a simulated household with pandas, Polars and DuckDB, each without options, and compares every reading with the JSON lines."""

import decimal
import json
import pathlib
import subprocess
import sys
import tempfile

import duckdb
import pandas
import polars

COLUMNS = (
    "meter medium register measured_at clock value unit storage tariff subunit function at suspect received_at".split()
)
TEXTS = ("meter", "medium", "register", "clock", "unit", "function", "suspect")
NUMBERS = ("storage", "tariff", "subunit")
TIMES = ("measured_at", "at", "received_at")


def instant(value):
    """A time of any kind as milliseconds since 1970; None where there is none."""
    if value is None or pandas.isna(value):
        return None
    # DuckDB's times without a zone are UTC, as written.
    stamp = pandas.Timestamp(value)
    stamp = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp
    return stamp.value // 1_000_000


def text(value):
    """Empty cells are nothing, whatever a reader makes of them."""
    return None if value is None or pandas.isna(value) or value == "" else value


def rows_of(frame):
    """Rows of a pandas frame as plain values."""
    for row in frame[COLUMNS].itertuples(index=False):
        row = row._asdict()
        yield {
            **{name: text(row[name]) for name in TEXTS},
            **{name: int(row[name]) for name in NUMBERS},
            **{name: instant(row[name]) for name in TIMES},
            "value": row["value"],
        }


def check(what, frame, expected, exact):
    """Every row in its place; values to the last digit where the form has decimals, else as the nearest double."""
    assert list(frame.columns)[: len(COLUMNS)] == COLUMNS or exact, (what, list(frame.columns))
    count = 0
    for row, line in zip(rows_of(frame), expected, strict=True):
        value, written = row.pop("value"), line["value"]
        same = decimal.Decimal(value) == written if exact else float(value) == float(written)
        assert same, (what, count, value, written)
        wanted = {name: line[name] for name in (*TEXTS, *NUMBERS)}
        wanted["unit"] = wanted["unit"] or None
        wanted |= {name: instant(line[name]) for name in TIMES}
        assert row == wanted, (what, count, row, wanted)
        count += 1
    print(f"{what}: {count} readings")


def main():
    meterkast = sys.argv[1] if len(sys.argv) > 1 else "target/debug/meterkast"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        store = f"sqlite://{folder}/meterkast.db"

        def run(*arguments):
            return subprocess.run([meterkast, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout

        # M-Bus meters with set days, and a P1 port with four meters.
        described = folder / "household.toml"
        described.write_text(run("simulate", "household", "--print"))
        span = ("--from", "2025-12-31T22:00:00+01:00", "--until", "2026-01-01T01:00:00+01:00", "--every", "10s")
        run("simulate", "household", str(described), *span, "--store", store)

        for kind in ((), ("--quarters",)):
            lines = run("export", "--store", store, "--format", "json", *kind).splitlines()
            expected = [json.loads(line, parse_float=decimal.Decimal, parse_int=decimal.Decimal) for line in lines]
            assert len(expected) > 100 and (kind or len({line["meter"] for line in expected}) > 4)
            name = "quarters" if kind else "readings"
            file = str(folder / f"{name}.csv")
            run("export", "--store", store, "--out", file, *kind)
            check(f"pandas, {name}.csv", pandas.read_csv(file), expected, False)
            check(f"polars, {name}.csv", polars.read_csv(file).to_pandas(), expected, False)
            duck = duckdb.sql(f"SELECT * FROM '{file}'")
            assert dict(zip(duck.columns, map(str, duck.types)))["measured_at"].startswith("TIMESTAMP"), duck.types
            check(f"DuckDB, {name}.csv", duck.df(), expected, False)
            file = str(folder / f"{name}.parquet")
            built = subprocess.run([meterkast, "export", "--store", store, "--format", "parquet", "--out", file, *kind])
            if built.returncode == 2:
                print("this build writes no Parquet: not read")
                continue
            assert built.returncode == 0
            frame = pandas.read_parquet(file)
            assert str(frame["measured_at"].dtype) in ("datetime64[ms, UTC]", "datetime64[ns, UTC]"), frame.dtypes
            check(f"pandas, {name}.parquet", frame, expected, True)
            frame = polars.read_parquet(file)
            assert frame["value"].dtype == polars.Decimal(38, 18), frame["value"].dtype
            check(f"polars, {name}.parquet", frame.to_pandas(), expected, True)
            duck = duckdb.sql(f"SELECT * EXCLUDE (value), value::VARCHAR AS value FROM '{file}'")
            check(f"DuckDB, {name}.parquet", duck.df(), expected, True)
            for row, line in zip(frame["decimals"], expected, strict=True):
                assert row == -line["value"].as_tuple().exponent


main()
