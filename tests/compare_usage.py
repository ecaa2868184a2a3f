"""Compares the monthly use that a database gives with what the simulator's meters counted. See tests/store-figures.

    compare_usage.py METERKAST DATABASE BOOKS

Every counter of the P1 meters in every month at whose beginning and end there are books: the same to the last digit, from midnight to
midnight, and nothing of it estimated. Meters on a bus are read some moments after midnight, so that their books cannot say what it was.
"""

import json
import subprocess
import sys
from collections import defaultdict
from decimal import Decimal

COUNTERS = ("import_low", "import_normal", "export_low", "export_normal", "volume")


def lines(text):
    return [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in text.splitlines()]


def main():
    meterkast, database, books = sys.argv[1:]
    held = defaultdict(dict)
    with open(books, encoding="utf-8") as file:
        for book in lines(file.read()):
            # What is not of that moment was measured by a meter on a bus.
            if book["register"] in COUNTERS and "storage" not in book and book["measured_at"] == book["at"]:
                held[book["meter"], book["register"]][book["at"]] = book["value"]
    expected = {}
    for counter, values in held.items():
        moments = [moment for moment in values if "-01T00:00:00" in moment]
        for begin, end in zip(moments, moments[1:]):
            expected[*counter, begin[:7]] = (values[end] - values[begin], begin, end, False)
    command = [meterkast, "usage", "--store", f"sqlite://{database}", "--by", "month", "--zone", "Europe/Amsterdam", "--format", "json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = {
        (line["meter"], line["register"], line["period"]): (line["value"], line["from"], line["to"], line["estimated"])
        for line in lines(output)
    }
    different = {key: (used.get(key), value) for key, value in expected.items() if used.get(key) != value}
    for key, (stored, counted) in list(different.items())[:10]:
        print(f"{key}: stored {stored}, counted {counted}", file=sys.stderr)
    print(f"  {len(expected)} months of counters compared, {len(different)} different")
    sys.exit(1 if different or not expected else 0)


main()
