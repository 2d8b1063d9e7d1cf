// What the types must allow, and what they must refuse. Compiled, never run.

import { ApaError, Engine, setLog, type Event, type Message, type Result, type Step, type Tool } from '../index.js';

export async function uses(signal: AbortSignal): Promise<void> {
  const engine: Engine = await Engine.open({ model: 'base.gguf', data: 'data', settings: { 'train.lambda': 0.2 }, signal });
  const stream = engine.generate({ messages: [{ role: 'user', content: 'hi' }], max_tokens: 8, logprobs: true }, { signal });
  for await (const text of stream) text.toUpperCase();
  const result: Result = await stream.result();
  const reason: 'stop' | 'length' | 'cancelled' = result.finish_reason;
  const receipt = await engine.feedback({ generation_id: result.id, thumbs: 'up', comment: reason });
  receipt.replaces_earlier satisfies boolean;
  await engine.feedback({ generation_id: result.id, signal: 'copied' });
  await engine.feedback({ generation_id: result.id, comment: 'a remark alone' });
  const step: Step = await engine.trainStep();
  if (step.outcome === 'published') step.version.toFixed();
  else step.reason.trim();
  for await (const event of engine.events()) told(event);
  for await (const answer of engine.answers()) {
    if (answer.event === 'answer') await engine.reward(answer.generation_id, answer.completion_tokens / 10);
  }
  await engine.addSample({ prompt: [1, 2], completion: 'abc', reward: 1, temperature: 0.7 });
  for (const token of result.logprobs ?? []) token.top_logprobs.map((other) => other.logprob + other.id + token.bytes.length);

  const tools: Tool[] = [{ type: 'function', function: { name: 'add', parameters: { type: 'object' } } }];
  const messages: Message[] = [{ role: 'user', content: [{ type: 'text', text: 'hi' }] }];
  const called = await engine.complete({ messages, tools, tool_choice: 'required', parallel_tool_calls: false });
  for (const call of called.tool_calls ?? []) messages.push({ role: 'tool', tool_call_id: call.id, content: call.function.arguments });
  messages.push({ role: 'assistant', tool_calls: called.tool_calls });
  await engine.complete({ messages, tools, tool_choice: { type: 'function', function: { name: 'add' } }, continue_final_message: true });
  await engine.complete({ prompt: 'a', logprobs: 2, max_completion_tokens: 4, model: 'any', n: 1, parse_special: true });
  await engine.complete({ prompt: 'a', response_format: { type: 'json_schema', json_schema: { schema: { type: 'object' } } } });
  setLog('info', (line) => console.error(line.level, line.target, line.message, line.version));
  setLog(null);
  try {
    await engine.close();
  } catch (error) {
    if (error instanceof ApaError && error.code === 'APA_ERR_CLOSED') return;
  }

  // @ts-expect-error: an engine is opened, not made.
  new Engine();
  // @ts-expect-error: the model is required.
  await Engine.open({ data: 'data' });
  // @ts-expect-error: a chat or a completion.
  engine.generate({ max_tokens: 8 });
  // @ts-expect-error: not both.
  engine.generate({ prompt: 'a', messages: [] });
  // @ts-expect-error: no such field.
  engine.generate({ prompt: 'a', temprature: 1 });
  // @ts-expect-error: no such choice.
  engine.generate({ messages, tools, tool_choice: 'always' });
  // @ts-expect-error: a completion calls no tools.
  engine.generate({ prompt: 'a', tools });
  // @ts-expect-error: a user says something.
  engine.generate({ messages: [{ role: 'user' }] });
  // @ts-expect-error: no such level.
  setLog('loud', () => {});
  // @ts-expect-error: a level wants a function.
  setLog('info');
  // @ts-expect-error: it says nothing.
  await engine.feedback({ generation_id: 'a' });
  // @ts-expect-error: one of them.
  await engine.feedback({ generation_id: 'a', rating: 1, thumbs: 'up' });
  // @ts-expect-error: one of them.
  await engine.feedback({ generation_id: 'a', signal: 'copied', thumbs: 'up' });
}

function told(event: Event): string {
  switch (event.event) {
    case 'step_done':
    case 'version_published':
    case 'version_activated':
    case 'trial_started':
    case 'trial_advanced':
      return String(event.version);
    case 'step_dropped':
    case 'version_proposed':
    case 'version_refused':
    case 'version_rolled_back':
      return event.reason;
    case 'error':
      return event.message;
    case 'unlearning':
      return String(event.replayed);
    case 'unlearned':
      return event.reason;
    case 'missed':
      return String(event.count);
  }
}
