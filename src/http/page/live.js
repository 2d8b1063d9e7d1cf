// What happens in the engine, as it tells it: one stream for the whole page, opened again when it breaks. Changes nothing.

import { call, events } from './api.js'

const listeners = new Set()

/** The newest state and whether it is current. */
export const now = { status: null, props: null, connected: false, client: null }

/** Calls `hear(kind, data)` for every event; `status` and `connection` are among the kinds. */
export function listen(hear) {
  listeners.add(hear)
}

function tell(kind, data) {
  for (const hear of listeners) hear(kind, data)
}

function connected(is) {
  if (now.connected === is) return
  now.connected = is
  tell('connection', is)
}

/** Listens for as long as the page is open. */
export async function follow() {
  for (let pause = 500; ; pause = Math.min(2 * pause, 10_000)) {
    try {
      await events('v1/events', {
        on(kind, data) {
          connected(true)
          pause = 500
          const news = JSON.parse(data)
          if (kind === 'status') now.status = news
          tell(kind, news)
        },
      })
    } catch (error) {
      // A key of a client may talk and rate, and not listen.
      if (error.status === 403) {
        now.client = await call('health').catch(() => null)
        return tell('client', now.client)
      }
      // Anything else is tried again below.
    }
    connected(false)
    await new Promise(resolve => setTimeout(resolve, pause))
  }
}

const FINAL = new Set(['version_published', 'version_activated', 'version_refused', 'version_proposed', 'version_rolled_back', 'trial_started', 'trial_advanced', 'unlearned'])

/** Whether an event changes the list of versions. */
export const changesVersions = kind => FINAL.has(kind)

/** An event in words, or null for one that needs none. */
export function inWords(kind, news) {
  switch (kind) {
    case 'version_published': return `Version ${news.version} serves, taught from version ${news.parent}.`
    case 'version_activated': return `Version ${news.version} serves again.`
    case 'version_refused': return `${news.version === null ? 'A candidate' : `Version ${news.version}`} was refused: ${news.reason}.`
    case 'version_proposed': return `Version ${news.version} waits for a person to activate it: ${news.reason}.`
    case 'version_rolled_back': return `Version ${news.version} was taken back, version ${news.parent} serves: ${news.reason}.`
    case 'trial_started': return `Version ${news.version} is tried by ${(100 * news.share).toFixed(0)} % of the users.`
    case 'trial_advanced': return `Version ${news.version} is tried by ${(100 * news.share).toFixed(0)} % of the users now.`
    case 'unlearning': return `${news.replayed} of ${news.batches} batches are replayed without a forgotten user\u2019s samples.`
    case 'unlearned': return `Versions that learned from a forgotten user were removed: ${news.reason}. Version ${news.version ?? news.parent} serves.`
    case 'step_done': return `A training step on ${news.metrics.samples} answers made version ${news.version}.`
    case 'step_dropped': return `A batch of ${news.consumed} ratings changed nothing: ${news.reason}.`
    case 'error': return `Error: ${news.message}`
    case 'missed': return `${news.count} events were missed.`
    default: return null
  }
}
