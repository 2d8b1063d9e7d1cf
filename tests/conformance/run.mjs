// Runs cases.json through the Node package: run.mjs CASES MODEL DATA. Prints what run.c prints.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Engine } from '../../bindings/node/index.js';

const [cases, model, data] = process.argv.slice(2);
const common = { serve: { context: 4096, threads: 1, speculate: false }, train: { auto: false, threads: 1 } };
const hex = (text) => Buffer.from(text).toString('hex');

let engines;
let generations;

const words = ([piece, times]) => piece.repeat(times);

const operations = {
  async open({ engine, model: missing, data: name, setting }) {
    const settings = structuredClone(common);
    if (setting) {
      const [section, key] = setting[0].split('.');
      settings[section][key] = setting[1];
    }
    engines[engine] = await Engine.open({ model: missing ? join(data, 'missing.gguf') : model, data: join(data, name), settings });
  },
  async close({ engine }) {
    await engines[engine].close();
  },
  start({ engine, gen, request, prompt_repeat }) {
    const prompt = prompt_repeat ? { prompt: words(prompt_repeat) } : {};
    const stream = engines[engine].generate({ ...prompt, ...request });
    generations[gen] = { stream, waiting: null };
  },
  async pull({ gen, quiet }) {
    const { stream } = generations[gen];
    let text = '';
    for await (const piece of stream) text += piece;
    const { finish_reason } = await stream.result();
    return [quiet ? '' : hex(text), finish_reason === 'cancelled' ? 'CANCELLED' : 'DONE'];
  },
  async next({ gen, timeout_ms }) {
    const generation = generations[gen];
    // What was not in time comes with the next call.
    generation.waiting ??= generation.stream.next();
    const late = new Promise((resolve) => {
      if (timeout_ms >= 0) setTimeout(resolve, timeout_ms);
    });
    const got = await Promise.race([generation.waiting, late]);
    if (!got) return ['', 'TIMEOUT'];
    generation.waiting = null;
    return ['', got.done ? 'DONE' : 'OK'];
  },
  cancel({ gen }) {
    generations[gen].stream.cancel();
  },
  async free({ gen }) {
    await generations[gen].stream.close();
  },
  async result({ gen }) {
    const { finish_reason, policy_version } = await generations[gen].stream.result();
    return [`${finish_reason} ${policy_version}`, 'OK'];
  },
  async feedback({ engine, gen, id, rating }) {
    await engines[engine].feedback({ generation_id: gen ? generations[gen].stream.id : id, rating });
  },
  async step({ engine }) {
    return [(await engines[engine].trainStep()).outcome, 'OK'];
  },
  policy: ({ engine }) => [String(engines[engine].policyVersion()), 'OK'],
  sync: async ({ engine }) => [String(await engines[engine].sync()), 'OK'],
  rollback: async ({ engine }) => [String(await engines[engine].rollback()), 'OK'],
  async activate({ engine, version }) {
    await engines[engine].activate(version);
  },
  versions: async ({ engine }) => [String((await engines[engine].versions()).length), 'OK'],
  count({ engine, text, text_repeat, hex: bytes }) {
    // Strings of JavaScript are never invalid UTF-8; bytes are no text, and refused as such.
    const what = bytes ? Buffer.from(bytes, 'hex') : text_repeat ? words(text_repeat) : text;
    return [String(engines[engine].countTokens(what)), 'OK'];
  },
  render: ({ engine, messages }) => [hex(engines[engine].render(messages)), 'OK'],
  async many({ engine, threads, request }) {
    const all = Array.from({ length: threads }, () => engines[engine].complete(request));
    return [String((await Promise.all(all)).length), 'OK'];
  },
};

for (const { name, only, steps } of JSON.parse(readFileSync(cases, 'utf8'))) {
  if (only && !only.includes('node')) continue;
  engines = {};
  generations = {};
  for (const [number, step] of steps.entries()) {
    let outcome;
    try {
      outcome = (await operations[step.op](step)) ?? ['', 'OK'];
    } catch (error) {
      if (!error.code?.startsWith?.('APA_ERR_')) throw error;
      outcome = ['', error.code.slice('APA_ERR_'.length)];
    }
    console.log(`${name}\t${number}\t${outcome.join('\t')}`);
  }
  for (const { stream } of Object.values(generations)) await stream.close();
  for (const engine of Object.values(engines)) await engine.close();
}
