// How much of a turn of the event loop this package may take: a thousand answers at once must not keep timers and sockets waiting.

/** Work of one turn, in milliseconds, before the rest waits for the next. */
const MOST_MS = 4;
/** How many of those that wait go on in a turn. */
const MOST_WAITERS = 64;

let began; // When the first work of this turn began.
let waiters = [];
let planned = false;

function plan() {
  if (planned) return;
  planned = true;
  setImmediate(() => {
    planned = false;
    began = undefined;
    const now = waiters.splice(0, MOST_WAITERS);
    if (waiters.length) plan();
    for (const resolve of now) resolve();
  });
}

/** Undefined if there is time for a piece of work; else a promise of a turn in which there is. */
export function turn() {
  plan();
  const now = performance.now();
  began ??= now;
  if (!waiters.length && now - began < MOST_MS) return undefined;
  return new Promise((resolve) => {
    waiters.push(resolve);
  });
}
