// The whole loop on one page: talk, rate, learn, talk again, go back.
//
//   cargo build --release
//   node bindings/node/build.mjs
//   node examples/chat.mjs MODEL.gguf DATA_DIR

import { Engine } from '../bindings/node/index.js';

const ANSWERS = 16;
const WANTED = 80;

const [model, data] = process.argv.slice(2);
if (!data) {
  console.error('usage: node chat.mjs MODEL.gguf DATA_DIR');
  process.exit(2);
}

/** Prints an answer as it comes. */
async function talk(engine) {
  const stream = engine.generate({ messages: [{ role: 'user', content: 'Name a colour.' }], max_tokens: 64 });
  for await (const text of stream) process.stdout.write(text);
  console.log();
  return stream.result();
}

async function run() {
  // This program says when to train; by default the engine does so by itself.
  const engine = await Engine.open({ model, data, settings: { 'train.auto': false } });
  for (let i = 0; i < ANSWERS; i++) {
    const answer = await talk(engine);
    // Likes answers of about WANTED letters: 1 at that length, falling towards -1.
    const off = Math.abs(answer.text.length - WANTED);
    await engine.feedback({ generation_id: answer.id, rating: (2 * WANTED) / (WANTED + off) - 1 });
  }
  const step = await engine.trainStep();
  if (step.outcome !== 'published') throw new Error(`the step published no version: ${step.reason}`);
  console.log(`training: ${step.metrics.samples} answers, mean rating ${step.metrics.mean_reward.toFixed(3)}`);
  const after = await talk(engine);
  console.log(`answered by version ${after.policy_version}, back to ${await engine.rollback()}`);
  await engine.close();
}

run().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
