// The log of the library, line by line, to a function of the application. Never prints.

import { errorOf } from './errors.js';

const LEVELS = ['error', 'warn', 'info', 'debug', 'trace'];

let current;

/** Sets the function that gets the log; see index.d.ts. */
export function setLog(native, level, log) {
  if (level === null) {
    current = undefined;
    native.log(0);
    native.lines(); // What nobody has been told yet is told to nobody.
    return;
  }
  const number = LEVELS.indexOf(level) + 1;
  if (number === 0) throw errorOf(-1, `the log level is ${String(level)}, expected one of ${LEVELS.join(', ')} or null`);
  if (typeof log !== 'function') throw errorOf(-1, `the log is a ${typeof log}, expected a function`);
  native.log(number);
  current = log;
}

/** Hands on what the library has said; called when there is something. */
export function deliver(native) {
  const [missed, ...lines] = native.lines();
  const log = current;
  if (!log) return;
  const told = lines.map((line) => JSON.parse(line));
  if (missed) told.unshift({ level: 'warn', target: 'apa', message: 'lines of the log were dropped, the oldest first', count: missed });
  for (const line of told) {
    try {
      log(line);
    } catch (error) {
      // The application's, as from any listener; the other lines come all the same.
      process.nextTick(() => {
        throw error;
      });
    }
  }
}
