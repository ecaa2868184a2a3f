"""Reads simulated ports with programs that are not ours. See tests/peers-read-simulated.

    peers_read_simulated.py p1|bus SECONDS METERKAST
"""

import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from decimal import Decimal
from pathlib import Path

KEY = "000102030405060708090A0B0C0D0E0F"
# The authentication key that a port has where none is given (Luxembourg P1 1.1.3, 4).
COMMON_AUTHENTICATION_KEY = "00112233445566778899AABBCCDDEEFF"


class Port:
    """A simulator at work."""

    def __init__(self, meterkast, what, description):
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        (folder / "household.toml").write_text(description, encoding="utf-8")
        self.path = str(folder / "port")
        command = [meterkast, "simulate", what, str(folder / "household.toml"), "--link", self.path]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not Path(self.path).exists():
            assert self.process.poll() is None, "the simulator ended"
            time.sleep(0.02)

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def read_p1(seconds, meterkast):
    from dsmr_parser import telegram_specifications as specifications
    from dsmr_parser.clients import SerialReader

    # Our dialect, their specification, seconds between telegrams, registers whose sum grows, the key: theirs opens what Austria sends.
    used, total = ("ELECTRICITY_USED_TARIFF_1", "ELECTRICITY_USED_TARIFF_2"), ("ELECTRICITY_IMPORTED_TOTAL",)
    dialects = [
        ("netherlands-2.2", specifications.V2_2, 10, used, None),
        ("netherlands-3.0", specifications.V3, 10, used, None),
        ("netherlands-4.0", specifications.V4, 10, used, None),
        ("netherlands-4.2", specifications.V4, 10, used, None),
        ("netherlands-5.0", specifications.V5, 1, used, None),
        ("belgium-1.4", specifications.BELGIUM_FLUVIUS, 1, used, None),
        ("belgium-2.1", specifications.BELGIUM_FLUVIUS, 1, used, None),
        ("luxembourg", specifications.LUXEMBOURG_SMARTY, 10, total, None),
        ("austria", specifications.SAGEMCOM_T210_D_R, 1, total, KEY),
        ("hungary", specifications.EON_HUNGARY, 10, total, None),
        ("sweden", specifications.SWEDEN, 10, total, None),
        ("germany", specifications.Q3D, 1, total, None),
    ]
    complaints = []

    class Complaints(logging.Handler):
        def emit(self, record):
            complaints.append(f"{record.name}: {record.getMessage()[:300]}")

    logging.getLogger("dsmr_parser").setLevel(logging.INFO)
    logging.getLogger("dsmr_parser").addHandler(Complaints())

    def settings():
        # A pseudo-terminal has no parity.
        return {"baudrate": 115200, "timeout": 20}

    ports, heard, broken, stopping = [], {}, [], threading.Event()

    def listen(name, path, specification, key):
        keys = (key, COMMON_AUTHENTICATION_KEY) if key else ()
        try:
            for telegram in SerialReader(path, settings(), specification, *keys).read_as_object():
                heard[name].append(telegram)
        except Exception as error:  # Whatever theirs may raise, unless we took the port away.
            if not stopping.is_set():
                broken.append(f"{name}: {error!r}")

    for name, specification, _, _, key in dialects:
        slaves = "" if name in ("austria", "hungary", "sweden", "germany") else '[[p1.meter]]\nmeasures = "gas"\n'
        sealed = f'key = "{key}"\n' if key else ""
        port = Port(meterkast, "p1", f'seed = 5\n[profile]\nsolar-w = 0\n[p1]\ndialect = "{name}"\n{sealed}{slaves}')
        ports.append(port)
        heard[name] = []
        threading.Thread(target=listen, args=(name, port.path, specification, key), daemon=True).start()
    time.sleep(seconds)
    stopping.set()
    said, failed = list(complaints), list(broken)
    for port in ports:
        port.end()
    wrong = 0
    for name, _, period, registers, _ in dialects:
        telegrams = heard[name]
        values = [sum(getattr(telegram, register).value for register in registers) for telegram in telegrams]
        # The first goes out at once.
        is_well = len(telegrams) >= max(1, seconds // period - 1) and all(isinstance(value, Decimal) for value in values)
        is_well &= values == sorted(values) and (seconds < 60 or values[-1] > values[0])
        wrong += not is_well
        print(f"  {name:16} {len(telegrams):3} telegrams, {values[-1] if values else 'nothing'} used{'' if is_well else '  TOO FEW, OR NOT RISING'}")
    for line in [*said, *failed][:20]:
        print(f"  {line}")
    print(f"dsmr-parser: {len(said)} complaints, {len(failed)} failures")
    return not (wrong or said or failed)


def read_bus(seconds, meterkast):
    import meterbus
    import serial

    meters = ["SIM-10000001-01-04", "SIM-20000002-01-06", "SIM-30000003-01-07"]
    tables = "".join(f'[[bus.meter]]\nmeter = "{meter}"\naddress = {address}\n' for address, meter in enumerate(meters, 1))
    port = Port(meterkast, "mbus", f"seed = 5\n[bus]\n{tables}")
    readouts, last = 0, {}
    try:
        until = time.monotonic() + seconds
        # A pseudo-terminal has no parity.
        with serial.Serial(port.path, 2400, 8, "N", 1, 2) as line:
            while time.monotonic() < until:
                for address in range(1, len(meters) + 1):
                    meterbus.send_ping_frame(line, address)
                    answer = meterbus.load(meterbus.recv_frame(line, 1))
                    assert isinstance(answer, meterbus.TelegramACK), answer
                    meterbus.send_request_frame(line, address)
                    frame = meterbus.load(meterbus.recv_frame(line, meterbus.FRAME_DATA_LENGTH))
                    body = json.loads(frame.to_JSON())["body"]
                    assert body["header"]["identification"].replace("0x", "").replace(", ", "") in meters[address - 1].replace("-", ""), body["header"]
                    counts = [Decimal(str(record["value"])) for record in body["records"] if record["unit"] in ("MeasureUnit.J", "MeasureUnit.M3")]
                    assert counts and counts[0] >= last.get(address, Decimal(0)), (address, last, counts)
                    last[address] = counts[0]
                    readouts += 1
    finally:
        port.end()
    print(f"pyMeterBus: {readouts} readouts of {len(meters)} meters, no error; counters {', '.join(str(last[key]) for key in sorted(last))}")
    return readouts >= seconds // 2


def main():
    what, seconds, meterkast = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sys.exit(0 if {"p1": read_p1, "bus": read_bus}[what](seconds, meterkast) else 1)


main()
