/** The library's own version. */
export const version: string;
/** The version of the interface of the library that is loaded: major in the high 16 bits, minor in the low 16. */
export const abiVersion: number;

export type LogLevel = 'error' | 'warn' | 'info' | 'debug' | 'trace';

/** A line of the log, with fields of its own. */
export interface LogLine {
  level: LogLevel;
  /** Which part of the library says it. */
  target: string;
  message: string;
  [field: string]: unknown;
}

/**
 * Has `log` called for each line of the log up to `level`, on this thread, when it has time: 1024 lines are kept, and a line tells how
 * many more there were. One function a process, which replaces the earlier one, also another thread's. Doesn't keep the process alive.
 */
export function setLog(level: LogLevel, log: (line: LogLine) => void): void;
/** Takes it back. */
export function setLog(level: null): void;

/** The classes of failure. */
export type ErrorCode =
  | 'APA_ERR_ARG' // The caller's input is wrong: an option, a request, an unknown id.
  | 'APA_ERR_CLOSED' // The engine or stream is closed.
  | 'APA_ERR_BUSY' // The queue is full, or another engine holds the data folder.
  | 'APA_ERR_MODEL' // The model file is missing, damaged or of another kind, or it could not be run.
  | 'APA_ERR_TRAIN' // Training failed; serving is untouched.
  | 'APA_ERR_IO' // A file, the disk or the record failed.
  | 'APA_ERR_CALLBACK'
  | 'APA_ERR_UNSUPPORTED' // This build, model or architecture can't do that.
  | 'APA_ERR_NOMEM'
  | 'APA_ERR_PANIC'; // A bug of the library, caught.

/** What went wrong, in one sentence. */
export class ApaError extends Error {
  /** The status of the C API; negative. */
  readonly status: number;
  readonly code: ErrorCode;
}

export interface OpenOptions {
  /** The base model, a GGUF file. */
  model: string;
  /** The folder of the record and the versions; one engine a folder. */
  data?: string;
  /** Settings of apad.toml by key, the section first: `{ 'serve.slots': 4, train: { lambda: 0.2 } }`. */
  settings?: Record<string, unknown>;
  /** Gives up: the promise is rejected with its reason, and what is loaded by then is closed. */
  signal?: AbortSignal;
}

/** A call that the model wants made. */
export interface ToolCall {
  /** Names the call, for the message that answers it. */
  id: string;
  type: 'function';
  /** `arguments` is a JSON object as text. */
  function: { name: string; arguments: string };
}

/** Text, whole or in parts. */
export type Content = string | { type: 'text'; text: string }[];

export type Message =
  | { role: 'system' | 'developer' | 'user' | (string & {}); content: Content; name?: string }
  | {
      role: 'assistant';
      content?: Content | null;
      refusal?: string | null;
      reasoning_content?: string | null;
      tool_calls?: ToolCall[] | null;
      name?: string;
    }
  /** The answer to a call. */
  | { role: 'tool'; content?: Content | null; tool_call_id?: string; name?: string };

/** A function that the model may call; the application makes the call, and answers with a message of role `tool`. */
export interface Tool {
  type: 'function';
  function: {
    name: string;
    description?: string;
    /** JSON schema of its arguments, an object. */
    parameters?: object;
    strict?: boolean | null;
  };
}

interface NamedTool {
  type: 'function';
  function: { name: string };
}

/** `auto`, the default, leaves it to the model; `required`, or a tool, makes the answer a call. */
export type ToolChoice =
  | 'none'
  | 'auto'
  | 'required'
  | NamedTool
  | { type: 'function'; name: string }
  | { type: 'allowed_tools'; allowed_tools: { mode: 'auto' | 'required'; tools: NamedTool[] } };

/** What the answer must look like. */
export type ResponseFormat =
  | { type: 'text' }
  | { type: 'json_object'; schema?: object }
  | { type: 'json_schema'; json_schema: { schema: object | boolean; name?: string; description?: string; strict?: boolean | null } }
  | { type: 'json_schema'; schema: object | boolean };

interface Sampling {
  max_tokens?: number;
  /** The newer name of `max_tokens`. */
  max_completion_tokens?: number;
  /** 0 is greedy; 1, the default, is the plain policy. */
  temperature?: number;
  top_k?: number;
  top_p?: number;
  min_p?: number;
  repeat_penalty?: number;
  frequency_penalty?: number;
  presence_penalty?: number;
  logit_bias?: Record<string, number>;
  response_format?: ResponseFormat;
  /** GBNF. */
  grammar?: string;
  seed?: number;
  /** The answer goes on to its limit: what ends answers is never sampled. */
  ignore_eos?: boolean;
  stop?: string | string[];
  /** Whom it is for; kept with the record. */
  user?: string;
  /** Any; the engine has one. */
  model?: string;
  /** One: start a generation for each answer. */
  n?: 1;
  /** Whether text that spells a control token is that token; else it is text. */
  parse_special?: boolean;
}

/** A chat, through the model's own template. */
export interface ChatRequest extends Sampling {
  messages: Message[];
  prompt?: never;
  /** Tells the log-probability of each token, in the result. */
  logprobs?: boolean;
  /** With `logprobs`: also those of this many most probable ones, up to 20. */
  top_logprobs?: number;
  tools?: Tool[];
  tool_choice?: ToolChoice;
  /** Has no effect: the model decides. */
  parallel_tool_calls?: boolean;
  /** `none` leaves reasoning in the text alone; `auto` is the default. */
  reasoning_format?: 'auto' | 'deepseek' | 'none';
  /** Whether the answer goes on with the last message; by default it does with one of the assistant that calls no tools. */
  continue_final_message?: boolean;
  /** Whether an answer of the assistant is begun; true by default. */
  add_generation_prompt?: boolean;
}

/** Plain text or tokens, continued. */
export interface CompletionRequest extends Sampling {
  prompt: string | number[];
  messages?: never;
  /** Tells the log-probability of each token and of this many most probable ones, up to 5, in the result. */
  logprobs?: number | boolean;
}

/** What to generate; fields have the names of the HTTP service. */
export type Request = ChatRequest | CompletionRequest;

/** A token that might have been sampled. */
export interface Alternative {
  /** Its text; bytes that are not UTF-8 by themselves are replaced. */
  token: string;
  /** Under the plain model at temperature 1, in nats; at least -9999. */
  logprob: number;
  bytes: number[];
  /** Its number. */
  id: number;
}

/** A token that was sampled. */
export interface TokenLogprob extends Alternative {
  /** The most probable ones there, the most probable first, itself perhaps among them. */
  top_logprobs: Alternative[];
}

export interface Result {
  /** Names the answer, for feedback. */
  id: string;
  /** The weights that made every token of it. */
  policy_version: number;
  text: string;
  finish_reason: 'stop' | 'length' | 'cancelled';
  seed: number;
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number };
  /** What of `text` is said to the user, where that is not all of it. */
  content?: string;
  /** What of `text` was thought before. */
  reasoning_content?: string;
  /** The calls that are in `text`, where the request has tools. */
  tool_calls?: ToolCall[];
  /** A token each, if they were asked for; without the one that ended the answer. */
  logprobs?: TokenLogprob[];
}

export interface CallOptions {
  /** Ends the generation; whoever waits gets its reason. */
  signal?: AbortSignal;
}

/** An answer being made. Iterating gives its text in whole codepoints; `break` cancels it. */
export class Stream implements AsyncIterableIterator<string> {
  private constructor();
  /** Names the answer, for feedback. */
  readonly id: string;
  next(): Promise<IteratorResult<string, undefined>>;
  return(): Promise<IteratorResult<string, undefined>>;
  throw(error: unknown): Promise<IteratorResult<string, undefined>>;
  [Symbol.asyncIterator](): this;
  /** The whole answer, once it has ended; pulls what is left of it. */
  result(): Promise<Result>;
  /** Asks it to end. What has been made still comes, with `finish_reason` `cancelled`. */
  cancel(): void;
  /** Ends and frees it. */
  close(): Promise<void>;
}

interface Said {
  generation_id: string;
  user?: string;
  comment?: string;
}
interface Kinds {
  rating: number;
  thumbs: 'up' | 'down';
  /** The answer as it should have been. */
  correction: string;
  /** Something the user did: `copied`, `regenerated`; the setting `reward.signals` has what each name adds. */
  signal: string;
}
type One<K extends keyof Kinds> = Pick<Kinds, K> & { [other in Exclude<keyof Kinds, K>]?: never };
/** What a person said of an answer: one of these kinds, or a comment alone. */
export type Feedback =
  | (Said & One<'rating'>)
  | (Said & One<'thumbs'>)
  | (Said & One<'correction'>)
  | (Said & One<'signal'>)
  | (Said & { comment: string } & { [kind in keyof Kinds]?: never });

export interface Receipt {
  feedback_id: number;
  generation_id: string;
  policy_version: number;
  replaces_earlier: boolean;
  /** Why it doesn't teach, though it is kept: a limit, or that it was said before. */
  left_out?: string;
  /** It waits on this machine while the database of `ledger.url` is away; its number is 0. */
  spooled?: boolean;
}

/** An answer made elsewhere. */
export type Sample = {
  completion: string | number[];
  /** -1 to 1; without one it waits for feedback. */
  reward?: number;
  /** At which it was sampled and is trained; 1 by default. */
  temperature?: number;
  parse_special?: boolean;
  user?: string;
} & ({ messages: Message[]; prompt?: never } | { prompt: string | number[]; messages?: never });

export interface SampleReceipt {
  generation_id: string;
  feedback_id: number | null;
  policy_version: number;
}

/** What a batch measured: lengths in tokens, KL in nats, times in seconds; null where there was nothing to measure. */
export type Metrics = Record<string, number | null>;

/** What was decided about a candidate, and why. */
/** What it takes to replace the versions that learned from a user. */
export interface UnlearnPlan {
  /** The first version that learned from the user; it and all later ones are removed. */
  first: number;
  /** The last ancestor of the active version that did not: parent of the new one. */
  back: number;
  /** Where the replay begins. */
  start: number;
  /** How many versions are removed. */
  versions: number;
  /** What is trained on again. */
  batches: number;
  answers: number;
  /** Of those answers, how many are no longer on record, and lost. */
  wordless: number;
  /** What those batches took at first. */
  seconds: number;
}

export interface Verdict {
  /** The version that it was compared with. */
  parent: number;
  ruling: 'promoted' | 'refused' | 'trial' | 'proposed' | 'rolled_back' | 'unlearned';
  record: { reason: string; examination?: object; seconds?: number; trial?: object };
}

export interface VersionRecord extends Version {
  /** The versions it goes back to, its parent first. */
  lineage: number[];
  verdict: Verdict | null;
}

export type Step =
  | { outcome: 'published'; version: number; metrics: Metrics }
  /** Trained, but not yet served to everyone. */
  | { outcome: 'pending'; version: number; ruling: 'trial' | 'proposed'; reason: string; metrics: Metrics }
  | { outcome: 'skipped'; reason: string; consumed: number };

export interface TrainerStatus {
  state: 'off' | 'unsupported' | 'loading' | 'idle' | 'training';
  reason: string | null;
  /** Whether it trains by itself when a batch is in. */
  auto: boolean;
  pending_ratings: number;
  batch: number;
  steps: number;
  skipped: number;
  dropped_steps: number;
  /** Candidates that were refused, and versions that were taken back because their ratings fell. */
  refused: number;
  rolled_back: number;
  /** Versions that wait for a person. */
  proposals: number[];
  /** The candidate that a share of the users gets. */
  trial: { version: number; parent: number; started: number; share: number; record: object | null } | null;
  last: Metrics | null;
}

export interface Status {
  model: string;
  architecture: string;
  policy_version: number;
  serving_versions: number[];
  running: number;
  queued: number;
  completed: number;
  generated_tokens: number;
  prompt_tokens: number;
  /** Tokens of answers that were guessed ahead, and those of them that held. */
  drafted_tokens: number;
  accepted_tokens: number;
  swaps: number;
  trainer: TrainerStatus;
}

export interface Version {
  version: number;
  /** The version it was trained from; null for the initial model. */
  parent: number | null;
  active: boolean;
  /** Milliseconds since 1970. */
  created: number;
  metrics: Metrics;
}

/** News of what the engine learns. */
export type Event =
  | { event: 'step_done'; version: number; metrics: Metrics }
  | { event: 'step_dropped'; reason: string; consumed: number }
  | { event: 'version_published'; version: number; parent: number }
  | { event: 'version_activated'; version: number }
  /** A candidate waits for a person (`gate.mode` is propose); `parent` serves. */
  | { event: 'version_proposed'; version: number; parent: number; reason: string }
  /** A candidate is served to a share of the users, and to a larger one. */
  | { event: 'trial_started'; version: number; parent: number; share: number }
  | { event: 'trial_advanced'; version: number; share: number }
  | { event: 'version_refused'; version: number | null; reason: string }
  /** Its users' ratings fell; `parent` serves again. */
  | { event: 'version_rolled_back'; version: number; parent: number; reason: string }
  /** Batches that were trained on again without a forgotten user's samples. */
  | { event: 'unlearning'; replayed: number; batches: number }
  /** Versions that learned from a forgotten user are removed; `version` took their place, or `parent` did. */
  | { event: 'unlearned'; version: number | null; parent: number; reason: string }
  | { event: 'error'; code: string; message: string }
  | { event: 'missed'; count: number };

/** An answer to be scored, by {@link Engine.reward}. */
export type Answer =
  | {
      event: 'answer';
      generation_id: string;
      policy_version: number;
      /** As the model saw it. */
      prompt: string;
      text: string;
      finish_reason: 'stop' | 'length';
      completion_tokens: number;
      user: string | null;
    }
  | { event: 'missed'; count: number };

/** News, from its opening on: at most 256 are kept. It ends with the engine; `break` closes it. */
export class Feed<T> implements AsyncIterableIterator<T> {
  private constructor();
  next(): Promise<IteratorResult<T, undefined>>;
  return(): Promise<IteratorResult<T, undefined>>;
  [Symbol.asyncIterator](): this;
  close(): void;
}

/** A serving, learning model. Failures are {@link ApaError}s. */
export class Engine {
  private constructor();
  /** Loads the model, recovers what was running, and starts the engine. */
  static open(options: OpenOptions): Promise<Engine>;
  /** Ends what runs, with `APA_ERR_CLOSED`, and frees the data folder. */
  close(): Promise<void>;

  /** Queues a generation. Throws what is wrong with the request; `APA_ERR_BUSY` if the queue is full. */
  generate(request: Request, options?: CallOptions): Stream;
  /** The whole answer. */
  complete(request: Request, options?: CallOptions): Promise<Result>;
  /** Answers a conversation with the engine's defaults. */
  chat(messages: Message[], options?: CallOptions): Promise<Result>;

  /** Records feedback, which is on disk then. */
  feedback(said: Feedback): Promise<Receipt>;
  /** Records that one answer is better than another. */
  prefer(said: { chosen_id: string; rejected_id: string; user?: string }): Promise<{ preference_id: number }>;
  /** Records an answer made elsewhere. */
  addSample(sample: Sample): Promise<SampleReceipt>;
  /** Deletes a user's words: their answers, what was said of those, what they said. The versions that learned from them remain. */
  forget(user: string): Promise<{ generations: number; feedback: number; preferences: number; samples: number }>;
  /** What `unlearn` takes; changes nothing. Null if no version learned from the user. */
  unlearnPlan(user: string): Promise<UnlearnPlan | null>;
  /**
   * Deletes a user's words, and has the versions that learned from them replaced by one that trains on the recorded batches without
   * them and is judged like any candidate. Resolves once the words are deleted; events tell of the rest, and an engine that is opened
   * again resumes it. Rejects with `APA_ERR_BUSY` if a user is being unlearned.
   */
  unlearn(
    user: string,
  ): Promise<{ generations: number; feedback: number; preferences: number; samples: number; unlearning: UnlearnPlan | null }>;
  /** Gives an answer its reward, -1 to 1. */
  reward(generationId: string, reward: number): Promise<void>;
  /** What the engine learns, from now on. */
  events(): Feed<Event>;
  /** Answers that ended, from now on, to be scored. */
  answers(): Feed<Answer>;

  /** Trains on the ratings that are in, one batch at most, and serves what comes of it. */
  trainStep(): Promise<Step>;
  /** Lets the engine train by itself. */
  startTrainer(): void;
  /** Has it train by {@link Engine.trainStep} only. */
  stopTrainer(): void;

  status(): Status;
  /** Numbers in Prometheus' text format. */
  metrics(): string;
  countTokens(text: string): number;
  /** Messages as the model sees them. */
  render(messages: Message[]): string;

  /** The version that new requests get; 0 is the initial model. */
  policyVersion(): number;
  versions(): Promise<Version[]>;
  /** A version with the verdict over it. */
  version(version: number): Promise<VersionRecord>;
  activate(version: number): Promise<void>;
  /** Activates the parent of the active version, and gives it. */
  rollback(): Promise<number>;
  /** Serves the newest version now, also after a rollback, and gives it. */
  sync(): Promise<number>;
  /** Writes a version into one file. */
  snapshot(version: number, path: string): Promise<void>;
  /** Serves what {@link Engine.snapshot} wrote, as a new version. */
  restore(path: string): Promise<number>;

  /** Serves HTTP beside the application; gives the address. */
  startHttp(address?: string): Promise<string>;
  stopHttp(): Promise<void>;
}
