// Computes in optimised code, OpenSSL, zlib and a worker thread all the time,
// checks every result, and speaks the protocol of testbed/fixtures/report.h.
'use strict';
const crypto = require('crypto'), zlib = require('zlib'), readline = require('readline');
const { Worker } = require('worker_threads');

let errors = 0, first = '', progress = 0, rounds = 0;
function wrong(text) {
	errors++;
	first = first || text;
}

function sum(n) {
	let h = 17;
	for (let i = 0; i < n; i++) h = (Math.imul(h, 31) + i) | 0;
	return h;
}

const data = Buffer.alloc(64 << 10, 'virtualizing operating system ');
const digest = () => crypto.createHash('sha256').update(data).digest('hex');
const expectedSum = sum(20000), expectedDigest = digest();

function work() {
	if (sum(20000) !== expectedSum) wrong('a sum changed');
	if (digest() !== expectedDigest) wrong('a digest changed');
	if (!zlib.inflateSync(zlib.deflateSync(data)).equals(data)) wrong('a compressed block changed');
	zlib.gzip(data, (err, packed) => {
		if (err || !zlib.gunzipSync(packed).equals(data)) wrong('a block compressed in a thread changed');
		rounds++;
		setTimeout(work, 1);
	});
}
work();

const worker = new Worker(`
	const { parentPort } = require('worker_threads');
	let h = 0n;
	setInterval(() => {
		for (let i = 0n; i < 1000n; i++) h = (h * 31n + i) % 1000003n;
		parentPort.postMessage(String(h));
	}, 2);`, { eval: true });
let h = 0n;
worker.on('message', (text) => {
	for (let i = 0n; i < 1000n; i++) h = (h * 31n + i) % 1000003n;
	if (String(h) !== text) wrong('the thread computes ' + text + ', not ' + h);
	progress = Math.min(rounds, progress + 1); // both must get on
});

console.log('ready');
readline.createInterface({ input: process.stdin }).on('line', (line) => {
	if (line === 'quit') process.exit(0);
	console.log(JSON.stringify({ fixture: 'node', errors, error: first, progress }));
}).on('close', () => process.exit(3));
