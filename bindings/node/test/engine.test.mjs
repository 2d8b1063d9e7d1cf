// The engine from Node: opening, asking, learning, closing.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ApaError, Engine, abiVersion, setLog, version } from '../index.js';
import { folder, has, long, model, open, small } from './helpers.mjs';

test('the library says what it is', () => {
  assert.match(version, /^\d+\.\d+\.\d+$/);
  assert.equal(abiVersion >> 16, 1);
});

test('what can not be opened says why', async (t) => {
  const data = folder(t);
  await assert.rejects(Engine.open({ model: join(data, 'missing.gguf'), data }), (error) => {
    assert(error instanceof ApaError);
    assert.equal(error.code, 'APA_ERR_MODEL');
    assert.equal(error.status, -4);
    return error.message.includes('missing.gguf');
  });
  await assert.rejects(Engine.open({ model, data, settings: { 'train.lamda': 1 } }), /train\.lambda/);
  await assert.rejects(Engine.open({ model, data, settings: { 'train.lambda': NaN } }), has('APA_ERR_ARG'));
  await assert.rejects(Engine.open({ model: 7, data }), has('APA_ERR_ARG'));
  for (const settings of [5, true, [], new Map([['serve.context', 64]])]) {
    await assert.rejects(Engine.open({ model, data, settings }), /settings is no plain object/);
  }
  await assert.rejects(Engine.open({ model, data, serve: { context: 64 } }), /serve is not known, expected model/);
  const engine = await Engine.open({ model, data, settings: small });
  await assert.rejects(Engine.open({ model, data, settings: small }), has('APA_ERR_BUSY'));
  await engine.close();
  await (await Engine.open({ model, data, settings: small })).close();
});

test('an open that is aborted frees its folder', async (t) => {
  const data = folder(t);
  const stop = new AbortController();
  const opening = Engine.open({ model, data, settings: small, signal: stop.signal });
  stop.abort(new Error('enough'));
  await assert.rejects(opening, /enough/);
  for (;;) {
    const engine = await Engine.open({ model, data, settings: small }).catch((error) => error);
    if (engine instanceof Engine) return engine.close();
    assert.equal(engine.code, 'APA_ERR_BUSY');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
});

test('the whole loop: rate, learn, go back', async (t) => {
  const engine = await open(t);
  const events = engine.events();
  for (let seed = 0; seed < 4; seed++) {
    const answer = await engine.complete({ prompt: 'the', max_tokens: 8, seed });
    assert.equal(answer.policy_version, 0);
    const receipt = await engine.feedback({ generation_id: answer.id, rating: seed / 2 - 1 });
    assert.equal(receipt.generation_id, answer.id);
    await engine.feedback({ generation_id: answer.id, signal: 'copied' });
  }
  assert.equal(engine.status().trainer.pending_ratings, 4);
  const step = await engine.trainStep();
  assert.equal(step.outcome, 'published');
  assert.equal(engine.policyVersion(), step.version);
  assert.equal((await events.next()).value.event, 'version_published');
  assert.equal((await events.next()).value.event, 'step_done');
  assert.equal((await engine.complete({ prompt: 'the', max_tokens: 4, seed: 1 })).policy_version, 1);

  const file = join(folder(t), 'version.apa');
  await engine.snapshot(1, file);
  assert(existsSync(file));
  assert.equal(await engine.rollback(), 0);
  assert.equal(await engine.sync(), 1);
  assert.equal(engine.policyVersion(), 1);
  assert.equal(await engine.rollback(), 0);
  assert.equal(await engine.restore(file), 2);
  await engine.activate(1);
  assert.deepEqual((await engine.versions()).map((v) => [v.version, v.active]), [[0, false], [1, true], [2, false]]);
  await assert.rejects(engine.activate(41), has('APA_ERR_ARG'));
  await assert.rejects(engine.activate(-1), has('APA_ERR_ARG'));
  assert.equal((await engine.trainStep()).outcome, 'skipped');
});

test('answers are scored, and samples from elsewhere taken in', async (t) => {
  const engine = await open(t);
  const answers = engine.answers();
  const { id } = await engine.complete({ prompt: 'the', max_tokens: 6, seed: 3 });
  const { value: job } = await answers.next();
  assert.equal(job.generation_id, id);
  await engine.reward(id, 0.5);
  const added = await engine.addSample({ messages: [{ role: 'user', content: 'hi' }], completion: 'abc', reward: -1 });
  assert.equal(engine.status().trainer.pending_ratings, 2);
  assert.deepEqual(Object.keys(await engine.prefer({ chosen_id: id, rejected_id: added.generation_id })), ['preference_id']);
  await assert.rejects(engine.feedback({ generation_id: 'nobody', rating: 1 }), has('APA_ERR_ARG'));
  await assert.rejects(engine.reward(id, 7), has('APA_ERR_ARG'));
  assert.equal((await engine.forget('nobody')).generations, 0);
  assert.equal(await engine.unlearnPlan('nobody'), null);
  const unlearned = await engine.unlearn('nobody');
  assert.deepEqual([unlearned.generations, unlearned.unlearning], [0, null]);
  await assert.rejects(engine.forget(''), has('APA_ERR_ARG'));
  answers.close();
  assert.deepEqual(await answers.next(), { value: undefined, done: true });
});

test('the trainer is started and stopped', async (t) => {
  const engine = await open(t);
  engine.startTrainer();
  assert.equal(engine.status().trainer.auto, true);
  engine.stopTrainer();
  assert.equal(engine.status().trainer.auto, false);
});

test('text is counted and rendered, and numbers shown', async (t) => {
  const engine = await open(t);
  assert(engine.countTokens('abc') > 0);
  assert(engine.render([{ role: 'user', content: 'abc' }]).includes('abc'));
  assert.throws(() => engine.render([]), has('APA_ERR_ARG'));
  assert.throws(() => engine.countTokens(7), has('APA_ERR_ARG'));
  assert.match(engine.metrics(), /apa_policy_version 0/);
});

test('HTTP runs beside the application', async (t) => {
  const engine = await open(t);
  const address = await engine.startHttp('127.0.0.1:0');
  const health = await (await fetch(`http://${address}/health`)).json();
  assert.equal(health.status, 'ok');
  await assert.rejects(engine.startHttp('127.0.0.1:0'), has('APA_ERR_BUSY'));
  await engine.stopHttp();
  await assert.rejects(fetch(`http://${address}/health`));
});

test('a closed engine is closed to every call', async (t) => {
  const engine = await open(t);
  const stream = engine.generate(long);
  const events = engine.events();
  const waiting = events.next();
  await engine.close();
  await engine.close();
  assert.deepEqual(await waiting, { value: undefined, done: true });
  await assert.rejects(stream.result(), has('APA_ERR_CLOSED'));
  assert.throws(() => engine.status(), has('APA_ERR_CLOSED'));
  assert.throws(() => engine.generate({ prompt: 'a' }), has('APA_ERR_CLOSED'));
  await assert.rejects(engine.trainStep(), has('APA_ERR_CLOSED'));
});

const add = {
  type: 'function',
  function: {
    name: 'add',
    parameters: { type: 'object', properties: { n: { enum: [1, 2] } }, required: ['n'], additionalProperties: false },
  },
};

test('a demanded call is in the result and can be answered', async (t) => {
  const engine = await open(t);
  const messages = [{ role: 'user', content: 'one and one?' }];
  const said = await engine.complete({ messages, tools: [add], tool_choice: 'required', max_tokens: 400, seed: 1 });
  assert.equal(said.tool_calls.length, 1);
  assert.equal(said.tool_calls[0].function.name, 'add');
  assert([1, 2].includes(JSON.parse(said.tool_calls[0].function.arguments).n));
  messages.push({ role: 'assistant', tool_calls: said.tool_calls });
  messages.push({ role: 'tool', tool_call_id: said.tool_calls[0].id, content: '2' });
  const after = await engine.complete({ messages, tools: [add], tool_choice: 'none', max_tokens: 4 });
  assert.equal(after.tool_calls, undefined);
});

test('a mistyped key is answered with the nearest name', async (t) => {
  const engine = await open(t);
  assert.throws(() => engine.generate({ prompt: 'a', temprature: 1 }), /unknown field "temprature", did you mean "temperature"\?/);
  assert.throws(() => engine.generate({ promt: 'a' }), /unknown field "promt", did you mean "prompt"\?/);
});

test('the log goes to its function until it is taken back', async (t) => {
  t.after(() => setLog(null));
  const lines = [];
  assert.throws(() => setLog('loud', () => {}), has('APA_ERR_ARG'));
  assert.throws(() => setLog('info'), has('APA_ERR_ARG'));
  setLog('debug', (line) => lines.push(line));
  await (await open(t)).close();
  // They come in turns of the event loop.
  for (let turns = 0; !lines.length && turns < 500; turns++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert(lines.length > 0, 'opening an engine logged nothing');
  for (const line of lines) {
    assert(['error', 'warn', 'info', 'debug'].includes(line.level), line.level);
    assert.equal(typeof line.target, 'string');
    assert.equal(typeof line.message, 'string');
  }
  setLog(null);
  lines.length = 0;
  await (await open(t)).close();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.deepEqual(lines, []);
});
