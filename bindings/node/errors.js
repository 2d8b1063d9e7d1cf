// How calls of the library fail.

const CODES = new Map([
  [-1, 'APA_ERR_ARG'],
  [-2, 'APA_ERR_CLOSED'],
  [-3, 'APA_ERR_BUSY'],
  [-4, 'APA_ERR_MODEL'],
  [-5, 'APA_ERR_TRAIN'],
  [-6, 'APA_ERR_IO'],
  [-7, 'APA_ERR_CALLBACK'],
  [-8, 'APA_ERR_UNSUPPORTED'],
  [-9, 'APA_ERR_NOMEM'],
  [-10, 'APA_ERR_PANIC'],
]);

/** What went wrong, in one sentence; `code` tells the class. */
export class ApaError extends Error {
  constructor(status, message) {
    super(message);
    this.name = 'ApaError';
    this.status = status;
    this.code = CODES.get(status) ?? 'APA_ERR_UNKNOWN';
  }
}

export function errorOf(status, message) {
  return new ApaError(status, message);
}
