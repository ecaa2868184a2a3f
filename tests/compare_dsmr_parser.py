"""Compares what meterkast and dsmr-parser make of the same telegrams. See tests/compare-dsmr-parser."""

import datetime
import decimal
import glob
import json
import logging
import re
import subprocess
import sys
import zoneinfo

from dsmr_parser import telegram_specifications as specifications
from dsmr_parser.parsers import TelegramParser

AMSTERDAM = zoneinfo.ZoneInfo("Europe/Amsterdam")
PHASES = ("L1", "L2", "L3")
# Their names, and the registers that they are here. What a tariff is called depends on the country.
REGISTERS = {
    "CURRENT_ELECTRICITY_USAGE": "power_import",
    "CURRENT_ELECTRICITY_DELIVERY": "power_export",
    "ELECTRICITY_IMPORTED_TOTAL": "import_total",
    "ELECTRICITY_EXPORTED_TOTAL": "export_total",
    "ELECTRICITY_USED_TARIFF_3": "import_rate3",
    "ELECTRICITY_USED_TARIFF_4": "import_rate4",
    "ELECTRICITY_DELIVERED_TARIFF_3": "export_rate3",
    "ELECTRICITY_DELIVERED_TARIFF_4": "export_rate4",
    "ELECTRICITY_REACTIVE_IMPORTED_TOTAL": "reactive_import_total",
    "ELECTRICITY_REACTIVE_EXPORTED_TOTAL": "reactive_export_total",
    "ELECTRICITY_REACTIVE_IMPORTED_TARIFF_1": "reactive_import_rate1",
    "ELECTRICITY_REACTIVE_IMPORTED_TARIFF_2": "reactive_import_rate2",
    "ELECTRICITY_REACTIVE_EXPORTED_TARIFF_1": "reactive_export_rate1",
    "ELECTRICITY_REACTIVE_EXPORTED_TARIFF_2": "reactive_export_rate2",
    "CURRENT_REACTIVE_IMPORTED": "reactive_power_import",
    "CURRENT_REACTIVE_EXPORTED": "reactive_power_export",
    "ELECTRICITY_COMBINED": "import_and_export_total",
    "SHORT_POWER_FAILURE_COUNT": "power_failures",
    "LONG_POWER_FAILURE_COUNT": "long_power_failures",
    "FREQUENCY": "frequency",
    "INSTANTANEOUS_POWER_FACTOR_TOTAL": "power_factor",
    "BELGIUM_CURRENT_AVERAGE_DEMAND": "demand_average",
    "BELGIUM_MAXIMUM_DEMAND_MONTH": "demand_peak",
    "MSN_INSTANTANEOUS_APPARENT_POWER_POSITIVE": "apparent_power_import",
    "MSN_INSTANTANEOUS_APPARENT_POWER_NEGATIVE": "apparent_power_export",
}
for phase in PHASES:
    low = phase.lower()
    REGISTERS |= {
        f"INSTANTANEOUS_VOLTAGE_{phase}": f"voltage_{low}",
        f"INSTANTANEOUS_CURRENT_{phase}": f"current_{low}",
        f"INSTANTANEOUS_ACTIVE_POWER_{phase}_POSITIVE": f"power_import_{low}",
        f"INSTANTANEOUS_ACTIVE_POWER_{phase}_NEGATIVE": f"power_export_{low}",
        f"INSTANTANEOUS_REACTIVE_POWER_{phase}_POSITIVE": f"reactive_power_import_{low}",
        f"INSTANTANEOUS_REACTIVE_POWER_{phase}_NEGATIVE": f"reactive_power_export_{low}",
        f"VOLTAGE_SAG_{phase}_COUNT": f"voltage_sags_{low}",
        f"VOLTAGE_SWELL_{phase}_COUNT": f"voltage_swells_{low}",
        f"INSTANTANEOUS_POWER_FACTOR_{phase}": f"power_factor_{low}",
    }
for quadrant in range(1, 5):
    REGISTERS[f"ELECTRICITY_REACTIVE_TOTAL_Q{quadrant}"] = f"reactive_quadrant{quadrant}"
    REGISTERS[f"INSTANTANEOUS_REACTIVE_POWER_Q{quadrant}"] = f"reactive_power_quadrant{quadrant}"


def registers_of(tariffs):
    first, second = tariffs
    return REGISTERS | {
        "ELECTRICITY_USED_TARIFF_1": f"import_{first}",
        "ELECTRICITY_USED_TARIFF_2": f"import_{second}",
        "ELECTRICITY_DELIVERED_TARIFF_1": f"export_{first}",
        "ELECTRICITY_DELIVERED_TARIFF_2": f"export_{second}",
    }


DUTCH, BELGIAN, NUMBERED = ("low", "normal"), ("normal", "low"), ("rate1", "rate2")


def specification(telegram):
    """Theirs for a telegram, and the names of its tariffs; it must be named to them."""
    if re.match(r"/Lux", telegram):
        return getattr(specifications, "LUXEMBOURG_SMARTY", specifications.V5), DUTCH
    if re.match(r"/EST5", telegram):
        return specifications.SAGEMCOM_T210_D_R, NUMBERED
    if "0-0:96.1.4(" in telegram:
        return specifications.BELGIUM_FLUVIUS, BELGIAN
    version = re.search(r"1-3:0\.2\.8\((\d)", telegram)
    if version:
        return (specifications.V5 if version[1] == "5" else specifications.V4), DUTCH
    if re.search(r"0-0:98\.1\.0\(\d{12}", telegram):
        return specifications.EON_HUNGARY, NUMBERED
    if re.match(r"/ISk5MIE5T", telegram):
        return specifications.ISKRA_IE, NUMBERED
    if "*255(" in telegram:
        return specifications.Q3D, NUMBERED
    if "0-0:1.0.0(" not in telegram and "0-0:96.1.1(" in telegram:
        return specifications.V2_2, DUTCH
    return specifications.SWEDEN, NUMBERED


def ours(meterkast, telegram):
    run = subprocess.run([meterkast, "decode", "--format", "json"], input=telegram.encode("latin-1"), capture_output=True)
    return [json.loads(line, parse_float=decimal.Decimal, parse_int=decimal.Decimal) for line in run.stdout.splitlines()]


def value(reading):
    """A reading in the unit that the meter sent."""
    return reading["raw"]["value"] if "raw" in reading else reading["value"]


def compare(name, telegram, theirs, reports, tariffs):
    """How many values were compared; raises where one differs."""
    count = 0
    # What is told twice they have as it was said last.
    current = {}
    for reading in reports[0]["readings"]:
        if "storage" not in reading:
            current[reading["register"]] = value(reading)
    names = registers_of(tariffs)
    for their_name, thing in theirs:
        register = names.get(their_name)
        if register is None or getattr(thing, "value", None) is None:
            continue
        want = decimal.Decimal(str(thing.value))
        # What is no register here is shown as it came; theirs looks for numbers anywhere in a line.
        shown = [entry["text"] for entry in reports[0]["unknown"]]
        if register not in current and any(str(want) in text for text in shown):
            continue
        assert current.get(register) == want, f"{name}: {register} is {current.get(register)}, {their_name} is {want}"
        count += 1
    for device in getattr(theirs, "MBUS_DEVICES", []):
        thing = getattr(device, "MBUS_METER_READING", None)
        if thing is None or thing.value is None or thing.unit is None:
            continue
        want = decimal.Decimal(str(thing.value))
        channel = str(device.channel_id)
        found = [
            (value(reading), report["measured_at"] if report["clock"] == "meter" else None)
            for report in reports
            if report["info"].get("channel") == channel
            for reading in report["readings"]
        ]
        unknown = any(f"0-{channel}:24" in entry["code"] for report in reports for entry in report["unknown"])
        assert unknown or want in [number for number, _ in found], f"{name}: channel {channel} is {found}, not {want}"
        count += 1
        for number, at in found:
            if number == want and at is not None and isinstance(thing.datetime, datetime.datetime):
                here = datetime.datetime.fromisoformat(at)
                # An S in winter or a W in summer is an offset here; theirs goes by the calendar.
                if here.utcoffset() != here.astimezone(AMSTERDAM).utcoffset():
                    continue
                assert here == thing.datetime, f"{name}: channel {channel} is of {here}, not {thing.datetime}"
                count += 1
    return count


def main():
    # What theirs does not accept is no news.
    logging.disable(logging.CRITICAL)
    arguments = sys.argv[1:] or ["target/debug/meterkast"]
    meterkast, files = arguments[0], arguments[1:]
    if not files:
        files = sorted(glob.glob("fixtures/p1/*.txt") + glob.glob("../shared/corpus/p1/*/*.txt"))
    telegrams = accepted = values = 0
    for file in files:
        with open(file, "rb") as opened:
            text = opened.read().decode("latin-1")
        # Theirs wants carriage returns.
        text = re.sub(r"\r?\n", "\r\n", text)
        for telegram in re.findall(r"/[^/!]*\r\n!(?:[0-9A-Fa-f]{1,4})?(?:\r\n|$)", text):
            telegrams += 1
            spec, tariffs = specification(telegram)
            # Without a CRC there is none to check, though their specification asks for one.
            if telegram.rstrip().endswith("!"):
                spec = spec | {"checksum_support": False}
            try:
                theirs = TelegramParser(spec).parse(telegram, throw_ex=True)
            except Exception:
                continue
            reports = ours(meterkast, telegram)
            if not reports:
                # Theirs takes telegrams whose version demands a CRC without one.
                assert telegram.rstrip().endswith("!"), f"{file}: accepted by dsmr-parser, rejected here"
                continue
            accepted += 1
            values += compare(file, telegram, theirs, reports, tariffs)
    print(f"{telegrams} telegrams, {accepted} accepted by both, {values} values compared, no difference")
    assert accepted >= 20 and values >= 300, "too few to mean anything"


main()
