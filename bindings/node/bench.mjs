// What a token costs that is there already: bench.mjs MODEL DATA. Prints JSON; the tiny model of the tests is fast enough.

import { Engine } from './index.js';

const [model, data] = process.argv.slice(2);
const engine = await Engine.open({ model, data, settings: { serve: { context: 1024, threads: 1 }, train: { auto: false } } });
const request = { prompt: 'the', max_tokens: 900, logit_bias: { 285: -100, 286: -100, 287: -100 } };
let read = 0;
let spent = 0;
while (read < 20_000) {
  const stream = engine.generate(request);
  let status;
  do {
    await new Promise((resolve) => setTimeout(resolve, 1));
    status = engine.status();
  } while (status.running + status.queued > 0);
  // Without the end, which waits for the disk.
  const began = performance.now();
  let last = began;
  for await (const text of stream) {
    read += text ? 1 : 0;
    last = performance.now();
  }
  spent += last - began;
}
console.log(JSON.stringify({ token_us: (spent * 1e3) / read }));
await engine.close();
