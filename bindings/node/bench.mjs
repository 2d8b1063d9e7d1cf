// What streams cost: bench.mjs MODEL DATA. Prints JSON: a token that is there already, the event loop's longest pause while a thousand
// answers are made, and how long cancelled streams live on. The tiny model of the tests is fast enough.

import { Engine } from './index.js';
import { longestPause } from './test/helpers.mjs';

const [model, data] = process.argv.slice(2);
const serve = { context: 1024, threads: 1, slots: 8, queue: 2000 };
const engine = await Engine.open({ model, data, settings: { serve, train: { auto: false } } });
const request = { prompt: 'the', max_tokens: 900, logit_bias: { 285: -100, 286: -100, 287: -100 } };
const rounded = (number) => Number(number.toFixed(2));

async function token() {
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
  return (spent * 1e3) / read;
}

const pause = () =>
  longestPause(() => Promise.all(Array.from({ length: 1000 }, (_, seed) => engine.complete({ prompt: 'the', max_tokens: 4, seed }))));

/** From cancel to end, in milliseconds, smallest first: one after the other, or all at once. */
async function cancels(together) {
  const all = Array.from({ length: 1000 }, () => engine.generate(request));
  const times = [];
  const end = async (stream) => {
    const began = performance.now();
    stream.cancel();
    await stream.result();
    times.push(performance.now() - began);
  };
  if (together) await Promise.all(all.map(end));
  else for (const stream of all) await end(stream);
  return times.sort((a, b) => a - b);
}

const [token_us, loop_pause_ms, one, all] = [await token(), await pause(), await cancels(false), await cancels(true)];
console.log(JSON.stringify({
  token_us: rounded(token_us),
  loop_pause_ms: rounded(loop_pause_ms),
  cancel_ms_median: rounded(one[500]),
  cancel_ms_worst: rounded(one[999]),
  cancel_all_ms_median: rounded(all[500]),
  cancel_all_ms_worst: rounded(all[999]),
}));
await engine.close();
