"""Reads the virtual bus with pyMeterBus and with meterkast, and compares the registers.

Energy in joules and volume in m3, each as a fraction: both must be the same amount exactly.
"""

import json
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import meterbus
import serial

METERKAST = sys.argv[1] if len(sys.argv) > 1 else "target/debug/meterkast"
# Addresses of fixtures/bus.toml that one meter has, and that answers in time, with one telegram.
ADDRESSES = [1, 5, 6]
JOULES = {"MeasureUnit.J": Decimal(1), "MeasureUnit.WH": Decimal(3600)}


def theirs(port, address):
    """The first energy, in J, and the first volume, in m3, by pyMeterBus."""
    meterbus.send_ping_frame(port, address)
    answer = meterbus.load(meterbus.recv_frame(port, 1))
    assert isinstance(answer, meterbus.TelegramACK), answer
    meterbus.send_request_frame(port, address)
    frame = meterbus.load(meterbus.recv_frame(port, meterbus.FRAME_DATA_LENGTH))
    found = {}
    for record in json.loads(frame.to_JSON())["body"]["records"]:
        unit, value = record["unit"], record["value"]
        if unit in JOULES:
            found.setdefault("energy", Decimal(str(value)) * JOULES[unit])
        elif unit == "MeasureUnit.M3":
            found.setdefault("volume", Decimal(str(value)))
    return found


def ours(path, address):
    """The same by meterkast."""
    command = [METERKAST, "mbus", "read", "--port", path, "--meter", str(address), "--format", "json"]
    message = json.loads(subprocess.run(command, check=True, capture_output=True).stdout, parse_float=Decimal)
    found = {}
    for reading in message["readings"]:
        factor = {"energy": 10**9, "volume": 1}.get(reading["register"])
        if factor and "storage" not in reading:
            found.setdefault(reading["register"], Decimal(reading["value"]) * factor)
    return found


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "bus")
        simulator = subprocess.Popen([METERKAST, "simulate", "mbus", "--link", path], stderr=subprocess.DEVNULL)
        try:
            while not Path(path).exists():
                assert simulator.poll() is None, "the simulator ended"
                time.sleep(0.05)
            for address in ADDRESSES:
                # Parity is refused by a pseudo-terminal.
                with serial.Serial(path, 2400, 8, "N", 1, 2) as port:
                    by_them = theirs(port, address)
                by_us = ours(path, address)
                # A count may go on in between: the last digit of either.
                for register, value in by_them.items():
                    step = {"energy": Decimal(360_000_000), "volume": Decimal("0.01")}[register]
                    assert abs(by_us[register] - value) <= step, (address, register, value, by_us)
                print(f"address {address}: {by_them}")
        finally:
            simulator.terminate()
            simulator.wait()


main()
