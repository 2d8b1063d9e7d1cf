// libapa for Node: promises for what takes time, async iterables for what comes piece by piece. The native half is src/.

import { createRequire } from 'node:module';
import { ApaError, errorOf } from './errors.js';
import { deliver, setLog as setLogOf } from './log.js';
import { Feed, Stream, pull } from './streams.js';
import { turn } from './turns.js';

const require = createRequire(import.meta.url);
const native = addon();

function addon() {
  try {
    return require('./build/apa.node');
  } catch (error) {
    const again = 'libapa\'s addon is not there or does not load; README.md says what it needs, and `npm rebuild libapa` builds it';
    throw new Error(`${again}: ${error.message}`, { cause: error });
  }
}

export { ApaError, Feed, Stream };

/** The library's own version. */
export const version = native.version;
/** The version of the interface of the library that is loaded. */
export const abiVersion = native.abiVersion;

native.setup(errorOf, (ids, logged) => {
  pull(ids);
  if (logged) deliver(native);
});
// The process ends without waiting for the threads of the library; so they end first, and what they said is told.
process.once('exit', () => {
  native.endAll();
  deliver(native);
});

/** Has the log told to a function, up to a level. */
export function setLog(level, log) {
  setLogOf(native, level, log);
}

// The order of src/addon.h.
const OPERATIONS = ['open', 'close', 'feedback', 'preference', 'sample', 'forget', 'unlearnPlan', 'reward', 'show', 'versions', 'step',
  'unlearn', 'activate', 'rollback', 'sync', 'snapshot', 'restore', 'httpStart', 'httpStop'];
const OPERATION = Object.fromEntries(OPERATIONS.map((name, number) => [name, number]));
const QUESTION = { status: 0, metrics: 1, render: 2, count: 3, version: 4, trainerStart: 5, trainerStop: 6 };

function wrong(message) {
  return errorOf(-1, message);
}

function string(name, value) {
  if (typeof value !== 'string') throw wrong(`${name} is ${value === null ? 'null' : `a ${typeof value}`}, expected a string`);
  return value;
}

function number(name, value) {
  if (typeof value !== 'number') throw wrong(`${name} is a ${typeof value}, expected a number`);
  return value;
}

/** A version as the C call takes it. */
function versionNumber(value) {
  if (!Number.isSafeInteger(value) || value < 0) throw wrong(`the version is ${value}, expected a whole number`);
  return value;
}

/** A request as JSON. Numbers that JSON can't say would become null, which is another request. */
function body(name, value) {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrong(`${name} is no object`);
  return JSON.stringify(value, (key, inner) => {
    if (typeof inner === 'number' && !Number.isFinite(inner)) throw wrong(`${key} is ${inner}, expected a number`);
    return inner;
  });
}

/** A serving, learning model. */
export class Engine {
  #handle;

  /** @private Use {@link Engine.open}. */
  constructor(handle) {
    if (handle === undefined) throw wrong('an engine is made by Engine.open');
    this.#handle = handle;
  }

  static async open({ model, data, settings = {}, signal, ...others } = {}) {
    if (typeof settings !== 'object' || settings === null || ![Object.prototype, null].includes(Object.getPrototypeOf(settings))) {
      throw wrong('settings is no plain object');
    }
    for (const name of Object.keys(others)) throw wrong(`${name} is not known, expected model, data, settings and signal`);
    if ((native.abiVersion >> 16) !== (native.headerVersion >> 16) || native.abiVersion < native.headerVersion) {
      throw errorOf(-8, `the library's interface is ${native.abiVersion}, expected ${native.headerVersion} or newer`);
    }
    signal?.throwIfAborted();
    const all = { ...settings };
    if (model !== undefined) all.model = string('model', model);
    if (data !== undefined) all.data = string('data', data);
    const opened = native.call(OPERATION.open, undefined, body('settings', all));
    if (!signal) return new Engine(await opened);
    // What is loaded after an abort is closed again.
    return new Promise((resolve, reject) => {
      const abort = () => {
        reject(signal.reason);
        opened.then((handle) => new Engine(handle).close(), () => {});
      };
      signal.addEventListener('abort', abort, { once: true });
      opened.then(
        (handle) => {
          signal.removeEventListener('abort', abort);
          if (!signal.aborted) resolve(new Engine(handle));
        },
        (error) => {
          signal.removeEventListener('abort', abort);
          reject(error);
        },
      );
    });
  }

  async #call(operation, text, value) {
    return native.call(OPERATION[operation], this.#handle, text, value);
  }

  #ask(question, text) {
    return native.ask(QUESTION[question], this.#handle, text);
  }

  async close() {
    await this.#call('close');
  }

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    await this.close();
  }

  generate(request, { signal } = {}) {
    signal?.throwIfAborted();
    return new Stream(native, native.start(this.#handle, body('the request', request)), this, signal);
  }

  async complete(request, options) {
    const later = turn();
    if (later) await later;
    return this.generate(request, options).result();
  }

  async chat(messages, options) {
    return this.complete({ messages }, options);
  }

  async feedback(said) {
    return JSON.parse(await this.#call('feedback', body('the feedback', said)));
  }

  async prefer(said) {
    return JSON.parse(await this.#call('preference', body('the preference', said)));
  }

  async addSample(sample) {
    return JSON.parse(await this.#call('sample', body('the sample', sample)));
  }

  async forget(user) {
    return JSON.parse(await this.#call('forget', string('the user', user)));
  }

  async unlearnPlan(user) {
    return JSON.parse(await this.#call('unlearnPlan', string('the user', user))).unlearning;
  }

  async unlearn(user) {
    return JSON.parse(await this.#call('unlearn', string('the user', user)));
  }

  async reward(generationId, reward) {
    await this.#call('reward', string('the id', generationId), number('the reward', reward));
  }

  events() {
    return new Feed(native, native.start(this.#handle, null), this);
  }

  answers() {
    return new Feed(native, native.start(this.#handle, undefined), this);
  }

  async trainStep() {
    return JSON.parse(await this.#call('step'));
  }

  startTrainer() {
    this.#ask('trainerStart');
  }

  stopTrainer() {
    this.#ask('trainerStop');
  }

  status() {
    return JSON.parse(this.#ask('status'));
  }

  metrics() {
    return this.#ask('metrics');
  }

  countTokens(text) {
    return this.#ask('count', string('the text', text));
  }

  render(messages) {
    return this.#ask('render', JSON.stringify(messages));
  }

  policyVersion() {
    return this.#ask('version');
  }

  async versions() {
    return JSON.parse(await this.#call('versions'));
  }

  async version(version) {
    return JSON.parse(await this.#call('show', undefined, versionNumber(version)));
  }

  async activate(version) {
    await this.#call('activate', '', versionNumber(version));
  }

  async rollback() {
    return this.#call('rollback');
  }

  async sync() {
    return this.#call('sync');
  }

  async snapshot(version, path) {
    await this.#call('snapshot', string('the path', path), versionNumber(version));
  }

  async restore(path) {
    return this.#call('restore', string('the path', path));
  }

  async startHttp(address = '') {
    return this.#call('httpStart', string('the address', address));
  }

  async stopHttp() {
    await this.#call('httpStop');
  }
}
