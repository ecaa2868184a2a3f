"""Compares what a database holds with what the simulator's meters hold. See tests/a-year.

    compare_books.py METERKAST DATABASE BOOKS

Every register of every meter at every moment of the books: value to the last digit, unit, and when it was measured. Neither may have
one that the other lacks.
"""

import json
import subprocess
import sys
from collections import defaultdict

QUALIFIERS = ("storage", "tariff", "subunit", "function", "suspect")


def key(reading, qualifiers):
    return (reading["meter"], reading["medium"], reading["register"], *(qualifiers.get(name) for name in QUALIFIERS))


def lines(text):
    # Numbers as they are written.
    return [json.loads(line, parse_float=str, parse_int=str) for line in text.splitlines()]


def main():
    meterkast, database, books = sys.argv[1:]
    expected = defaultdict(dict)
    with open(books, encoding="utf-8") as file:
        for book in lines(file.read()):
            expected[book["at"]][key(book, book)] = (book["value"], book["unit"], book["measured_at"])
    compared = differences = 0
    for moment, registers in expected.items():
        command = [meterkast, "readings", "--store", f"sqlite://{database}", "--at", moment, "--format", "json"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        stored = {
            key(reading, reading["qualifiers"]): (reading["value"], reading["unit"], reading["at"]) for reading in lines(output)
        }
        # What a meter recorded for a day before it was first read is known from later, and not in the books of the moment.
        known = {register[0] for register in registers}
        stored = {register: value for register, value in stored.items() if register[0] in known or register[3] is None}
        for register in registers.keys() | stored.keys():
            compared += 1
            if registers.get(register) != stored.get(register):
                differences += 1
                if differences <= 10:
                    print(f"{moment} {register}: stored {stored.get(register)}, counted {registers.get(register)}", file=sys.stderr)
    print(f"  {len(expected)} moments, {compared} registers compared, {differences} different")
    sys.exit(1 if differences or compared < 10 * len(expected) else 0)


main()
