// What the tests share: engines on a tiny model (APA_TINY_MODEL, or one that is made), closed when their test ends.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Engine } from '../index.js';
import { tinyModel } from './tiny.mjs';

export const model = process.env.APA_TINY_MODEL ?? made();

function made() {
  const dir = mkdtempSync(join(tmpdir(), 'apa-node-model-'));
  process.once('exit', () => rmSync(dir, { recursive: true, force: true }));
  tinyModel(join(dir, 'tiny.gguf'));
  return join(dir, 'tiny.gguf');
}

export function folder(t) {
  const dir = mkdtempSync(join(tmpdir(), 'apa-node-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export const small = { serve: { context: 8192, threads: 1, slots: 4, speculate: false }, train: { auto: false, threads: 1 } };

export async function open(t, settings = {}) {
  const data = folder(t);
  const engine = await Engine.open({ model, data, settings: { ...small, ...settings } });
  t.after(() => engine.close());
  return engine;
}

/** A request that runs for seconds on a tiny model: random weights would end an answer by chance. */
export const long = { prompt: 'the', max_tokens: 7000, ignore_eos: true, seed: 2 };

export const has = (code) => (error) => error.code === code;

/** Milliseconds that the event loop stood still at most while `work` ran. */
export async function longestPause(work) {
  let worst = 0;
  let last = performance.now();
  const clock = setInterval(() => {
    worst = Math.max(worst, performance.now() - last);
    last = performance.now();
  }, 1);
  await work();
  clearInterval(clock);
  return worst;
}
