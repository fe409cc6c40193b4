// Answers each connection by the next number; timers and a pool of threads are at work.
const net = require('net'), crypto = require('crypto');
let n = 0, ticks = 0, hashed = 0;
setInterval(() => { ticks++; crypto.pbkdf2('a', 'b', 100, 32, 'sha256', () => { hashed++; }); }, 5);
net.createServer(c => { c.once('data', () => { c.end(`${++n}\n`); }); }).listen(+process.argv[2], '127.0.0.1');
