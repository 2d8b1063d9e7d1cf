// What comes piece by piece: answers and news. Text is taken from the library when somebody asks for it; the library says when there
// is more, so that no thread waits.

import { errorOf } from './errors.js';
import { turn } from './turns.js';

const TIMEOUT = 2;

/** Who waits, by id. Held here, so that what somebody waits for is not collected. */
const waiting = new Map();

/** Frees what was forgotten. */
const forgotten = new FinalizationRegistry(({ native, handle, signal, abort }) => {
  signal?.removeEventListener('abort', abort);
  native.free(handle);
});

/** Called by the library: these have something to be pulled. */
export function pull(ids) {
  for (const id of ids) waiting.get(id)?.();
}

/** The common part: a queue in the library, pulled by at most one caller at a time. */
class Pulled {
  #native;
  #handle;
  #id;
  #engine;
  #takers = 0;
  #last; // The pull of the caller who came last.
  #wake;
  freed = false;

  constructor(native, [handle, id], engine, onAbort) {
    this.#native = native;
    this.#handle = handle;
    this.#id = id;
    this.#engine = engine; // Not collected before what runs on it.
    forgotten.register(this, { native, handle, ...onAbort }, this);
  }

  /** Pulls: text, or the status that came instead. Callers get their turn in order; most are alone, and spared a promise. */
  take(interrupted) {
    const wait = () => this.#wait(interrupted);
    this.#last = this.#takers++ ? this.#last.then(wait, wait) : wait();
    return this.#last;
  }

  async #wait(interrupted) {
    try {
      for (;;) {
        const later = turn();
        if (later) await later;
        interrupted?.();
        const got = this.#native.next(this.#handle);
        if (got !== TIMEOUT) return got;
        this.#native.hold(1);
        await new Promise((resolve) => {
          this.#wake = resolve;
          waiting.set(this.#id, resolve);
        });
        waiting.delete(this.#id);
        this.#native.hold(-1);
      }
    } finally {
      this.#takers -= 1;
    }
  }

  /** Has a waiting caller look again. */
  wake() {
    this.#wake?.();
  }

  result() {
    return this.#native.result(this.#handle);
  }

  cancel() {
    this.#native.cancel(this.#handle);
  }

  free() {
    if (this.freed) return;
    this.freed = true;
    forgotten.unregister(this);
    this.#native.free(this.#handle);
    this.wake();
  }
}

/** An answer being made: an async iterable of its text. */
export class Stream {
  #pulled;
  #id;
  #signal;
  #abort;
  #end; // { result } or { error }, once it has ended.
  #text = '';

  /** @private Use {@link Engine.generate}. */
  constructor(native, started, engine, signal) {
    const [handle, , name] = started;
    const self = new WeakRef(this);
    const abort = () => {
      native.cancel(handle);
      self.deref()?.#pulled.wake();
    };
    signal?.addEventListener('abort', abort, { once: true });
    this.#signal = signal;
    this.#abort = abort;
    this.#id = name;
    this.#pulled = new Pulled(native, started, engine, { signal, abort });
  }

  get id() {
    return this.#id;
  }

  async next() {
    if (this.#end) return this.#last();
    let got;
    try {
      got = await this.#pulled.take(() => {
        if (this.#signal?.aborted) throw this.#signal.reason;
      });
      if (typeof got === 'string') {
        this.#text += got;
        return { value: got, done: false };
      }
      this.#close({ result: JSON.parse(this.#pulled.result()) });
    } catch (error) {
      this.#close({ error });
    }
    return this.#last();
  }

  /** The end: told as an error once, as all iterables do it. */
  #last() {
    if (this.#end.error && !this.#end.told) {
      this.#end.told = true;
      throw this.#end.error;
    }
    return { value: undefined, done: true };
  }

  #close(end) {
    this.#end ??= end;
    this.#signal?.removeEventListener('abort', this.#abort);
    this.#pulled.free();
  }

  async return(value) {
    if (!this.#end) this.#close({ error: errorOf(-2, 'the stream was left before the end of the answer'), told: true });
    return { value, done: true };
  }

  async throw(error) {
    await this.return();
    throw error;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  async result() {
    while (!this.#end) await this.next();
    if (this.#end.error) {
      this.#end.told = true;
      throw this.#end.error;
    }
    return this.#end.result;
  }

  cancel() {
    if (!this.#end) this.#pulled.cancel();
  }

  async close() {
    await this.return();
  }

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    await this.return();
  }
}

/** News of an engine: an async iterable of objects that ends with the engine. */
export class Feed {
  #pulled;

  /** @private Use {@link Engine.events} or {@link Engine.answers}. */
  constructor(native, started, engine) {
    this.#pulled = new Pulled(native, started, engine);
  }

  async next() {
    if (this.#pulled.freed) return { value: undefined, done: true };
    try {
      return { value: JSON.parse(await this.#pulled.take()), done: false };
    } catch (error) {
      this.#pulled.free();
      if (error.code !== 'APA_ERR_CLOSED') throw error;
      return { value: undefined, done: true };
    }
  }

  async return(value) {
    this.#pulled.free();
    return { value, done: true };
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  close() {
    this.#pulled.free();
  }
}

