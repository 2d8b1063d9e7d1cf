// Calls the service, with the key that its user gave. Shows nothing but the question for that key.

import { byId } from './dom.js'

const KEY = 'apad-key'

/** An answer of the service that is an error, or no answer. */
export class Failed extends Error {
  constructor(message, status, code) {
    super(message)
    this.status = status
    this.code = code
  }
}

let asking = null

/** Asks for a key, once however many calls want one. */
function newKey() {
  asking ??= new Promise(resolve => {
    const dialog = byId('key')
    if (sessionStorage.getItem(KEY) !== null) byId('key-why').textContent = 'The key that was given is not one of this service.'
    byId('key-text').value = ''
    dialog.addEventListener('close', () => {
      const given = byId('key-text').value.trim()
      if (given) sessionStorage.setItem(KEY, given)
      asking = null
      resolve(Boolean(given))
    }, { once: true })
    dialog.showModal()
  })
  return asking
}

async function send(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY)
    const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { 'content-type': 'application/json' }) }
    let response
    try {
      response = await fetch(path, { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), signal })
    } catch (error) {
      if (error.name === 'AbortError') throw error
      throw new Failed('The service does not answer. Is it still running?', 0, 'unreachable')
    }
    if (response.ok) return response
    if (response.status === 401 && await newKey()) continue
    const said = await response.json().catch(() => null)
    const message = said?.error?.message ?? `The service answered with status ${response.status}.`
    throw new Failed(sentence(message), response.status, said?.error?.code)
  }
}

/** The service's messages are clauses for a log. */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1)
  return /[.!?]$/.test(begun) ? begun : `${begun}.`
}

/** The JSON of a call: GET, or POST where there is a body. */
export async function call(path, body, signal) {
  return (await send(path, { body, signal })).json()
}

/** Server-sent events of a call: `on(event, data)` for each, until the end. */
export async function events(path, { body, signal, on }) {
  const response = await send(path, { body, signal })
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const parts = (rest + value).split('\n\n')
    rest = parts.pop()
    for (const part of parts) {
      let [kind, data] = ['message', '']
      for (const line of part.split('\n')) {
        if (line.startsWith('event: ')) kind = line.slice(7)
        if (line.startsWith('data: ')) data += line.slice(6)
      }
      if (data) on(kind, data)
    }
  }
}
