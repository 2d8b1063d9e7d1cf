// The official `openai` package of npm against a daemon, as its users write it: node openai_node.mjs URL PACKAGES.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [url, packages] = process.argv.slice(2)
const { default: OpenAI } = await import(pathToFileURL(createRequire(packages + '/').resolve('openai')))
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'none', maxRetries: 0 })
const model = (await client.models.list()).data[0].id
const messages = [{ role: 'user', content: 'hello' }]

const whole = await client.chat.completions.create({ model, messages, max_tokens: 8, seed: 1, logprobs: true, top_logprobs: 2 })
assert.equal(whole.choices[0].message.role, 'assistant')
assert.ok(whole.choices[0].logprobs.content.every(t => t.top_logprobs.length === 2))

let text = ''
const stream = await client.chat.completions.create({ model, messages, max_tokens: 8, seed: 1, stream: true })
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? ''
assert.equal(text, whole.choices[0].message.content)

const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'], additionalProperties: false }
const json = await client.chat.completions.create({ model, messages, max_tokens: 200,
  response_format: { type: 'json_schema', json_schema: { name: 'answer', schema } } })
assert.ok(json.choices[0].message.content.trim().startsWith('{'))

const parameters = { type: 'object', properties: { unit: { enum: ['C', 'F'] } }, required: ['unit'], additionalProperties: false }
const tools = [{ type: 'function', function: { name: 'weather', parameters } }]
const asked = await client.chat.completions.create({ model, messages, tools, tool_choice: 'required', max_tokens: 400 })
assert.equal(asked.choices[0].message.tool_calls[0].function.name, 'weather')
const runner = client.chat.completions.stream({ model, messages, tools, tool_choice: 'required', max_tokens: 400 })
assert.equal((await runner.finalChatCompletion()).choices[0].finish_reason, 'tool_calls')

// The loop of calls and results, as the package runs it.
const given = []
const run = client.chat.completions.runTools({ model, messages, max_tokens: 400, tool_choice: 'required', temperature: 0.5,
  tools: [{ type: 'function', function: { name: 'weather', parameters, parse: JSON.parse,
    function: argument => { given.push(argument.unit); return '12 degrees' } } }] }, { maxChatCompletions: 2 })
await run.done()
assert.ok(given.length > 0 && given.every(unit => unit === 'C' || unit === 'F'), String(given))

const vectors = (await client.embeddings.create({ model, input: ['the sea', 'a window'] })).data
assert.ok(Math.abs(vectors[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3)

const long = await client.chat.completions.create({ model, messages, max_tokens: 1500, stream: true })
for await (const _ of long) break // cancels

await assert.rejects(client.chat.completions.create({ model, messages, temperature: 99 }), OpenAI.BadRequestError)
assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 2 })).choices)
console.log('ok')
