// The ends of a process and of its threads, with work in flight.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { folder, model, open, small } from './helpers.mjs';

const index = new URL('../index.js', import.meta.url).href;

/** Runs a program that has an engine open; its output, after a clean end. */
function run(t, body) {
  const options = JSON.stringify({ model, data: folder(t), settings: small });
  const source = `import { Engine } from '${index}';\nconst engine = await Engine.open(${options});\n${body}`;
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', source], { timeout: 60_000 });
  assert.deepEqual([status, signal, stderr.toString()], [0, null, '']);
  return stdout.toString();
}

const busy = `
  for (let seed = 0; seed < 8; seed++) engine.generate({ prompt: 'the', max_tokens: 900, seed });
  for (let i = 0; i < 4; i++) engine.addSample({ prompt: 'the', completion: 'abc', reward: i / 4 }).catch(() => {});
  engine.trainStep().catch(() => {});`;

test('a process exits with work in flight', (t) => {
  assert.equal(run(t, `${busy} console.log('out'); process.exit(0);`), 'out\n');
});

test('what the library logs at the end of a process is told', (t) => {
  const loud = `const { setLog } = await import('${index}'); setLog('trace', (line) => console.log(line.target.length > 0));`;
  const out = run(t, `${loud} ${busy} process.exit(0);`);
  assert.match(out, /^(true\n)+$/);
});

test('a log does not keep a process alive', (t) => {
  const loud = `const { setLog } = await import('${index}'); setLog('trace', () => {});`;
  assert.equal(run(t, `${loud} console.log('out');`), 'out\n');
});

test('a process ends by itself when nobody waits', (t) => {
  assert.equal(run(t, `engine.generate({ prompt: 'the', max_tokens: 900, seed: 1 }); engine.events(); console.log('out');`), 'out\n');
});

test('a process waits for what somebody waits for', (t) => {
  const out = run(t, `engine.complete({ prompt: 'the', max_tokens: 5, seed: 1 }).then((r) => console.log(r.usage.prompt_tokens > 0));`);
  assert.equal(out, 'true\n');
});

test('an exception that nobody catches ends the process with its own message', (t) => {
  const options = JSON.stringify({ model, data: folder(t), settings: small });
  const source = `import { Engine } from '${index}';\nconst engine = await Engine.open(${options});\n${busy}\nthrow new Error('mine');`;
  const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', source], { timeout: 60_000 });
  assert.equal(status, 1);
  assert.match(stderr.toString(), /Error: mine/);
});

test('threads have engines of their own, and may be terminated with work in flight', async (t) => {
  const engine = await open(t);
  const answers = [];
  for (let n = 0; n < 3; n++) {
    const options = JSON.stringify({ model, data: folder(t), settings: small });
    const worker = new Worker(
      `(async () => {
        const { Engine, setLog } = await import('${index}');
        setLog('trace', () => {}); // The log is one of them's, and ends with it.
        const engine = await Engine.open(${options});
        const { text } = await engine.complete({ prompt: 'the', max_tokens: 12, temperature: 0 });
        ${busy}
        require('node:worker_threads').parentPort.postMessage(text);
        setInterval(() => {}, 1000);
      })()`,
      { eval: true },
    );
    answers.push(await new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject)));
    await worker.terminate();
  }
  const { text } = await engine.complete({ prompt: 'the', max_tokens: 12, temperature: 0 });
  assert.deepEqual(answers, [text, text, text]);
});
