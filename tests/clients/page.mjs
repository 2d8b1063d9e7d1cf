// The page in a browser: a talk, ratings that teach, versions, errors that can be read, a key, and what screen readers
// get. URL PACKAGES KEYED_URL; with APA_PAGE_SCREENS=FOLDER it leaves pictures there.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { join } from 'node:path'

const [url, packages, keyedUrl] = process.argv.slice(2)
const require = createRequire(join(packages, 'package.json'))
const puppeteer = require('puppeteer-core').default ?? require('puppeteer-core')
const { source: axe } = require('axe-core')
const screens = process.env.APA_PAGE_SCREENS

const browser = await puppeteer.launch({
  executablePath: process.env.APA_CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
})
const troubles = []

async function open(at) {
  const page = await browser.newPage()
  await page.setViewport({ width: 1180, height: 860 })
  page.setDefaultTimeout(60_000)
  page.on('pageerror', error => troubles.push(`error: ${error.message}`))
  page.on('console', line => {
    // What a refused request says; the page says it too, in its own words.
    if (line.type() === 'error' && !line.text().startsWith('Failed to load resource')) troubles.push(`console: ${line.text()}`)
  })
  page.on('request', request => {
    const { origin, protocol } = new URL(request.url())
    if (protocol.startsWith('http') && origin !== new URL(at).origin) troubles.push(`asked ${request.url()}`)
  })
  await page.goto(at)
  return page
}

const page = await open(url)
const text = selector => page.$eval(selector, element => element.textContent)
const until = (said, selector) => page.waitForFunction((said, selector) =>
  [...document.querySelectorAll(selector)].some(element => element.textContent.includes(said)), {}, said, selector)
const press = (words, within = 'main') => page.evaluate((words, within) => {
  const button = [...document.querySelectorAll(`${within} button, ${within} summary`)].filter(b => b.offsetParent && (b.textContent.trim() === words || b.getAttribute('aria-label') === words)).at(-1)
  if (!button) throw new Error(`no button ${words} in ${within}`)
  button.focus()
  button.click()
}, words, within)
const picture = async name => screens && page.screenshot({ path: join(screens, `${name}.png`) })

async function accessible(where) {
  await page.evaluate(axe)
  let violations
  for (let tries = 0; violations === undefined; tries++) {
    try {
      ({ violations } = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] })))
    } catch (error) {
      // axe trips over what changes while it looks.
      if (tries === 5) throw error
    }
  }
  assert.deepEqual(violations.map(v => `${v.id}: ${v.help}: ${v.nodes.map(n => n.html.slice(0, 120)).join(' | ')}`), [], where)
}

async function ask(question) {
  const before = await page.$$eval('.answer .facts', all => all.length)
  await page.type('#question', question)
  await page.keyboard.press('Enter')
  await page.waitForFunction(before => document.querySelectorAll('.answer .facts').length > before && document.querySelector('[aria-busy]') === null, {}, before)
}

// Where keys are set, the page itself needs none, and asks for one.
{
  const keyed = await open(keyedUrl)
  const give = async key => {
    await keyed.waitForFunction(() => document.querySelector('#key').open)
    await keyed.type('#key-text', key)
    await keyed.keyboard.press('Enter')
  }
  await give('wrong')
  await keyed.waitForFunction(() => document.querySelector('#key-why').textContent.includes('not one of this service'))
  await give('open-sesame-and-barley')
  await keyed.waitForFunction(() => document.querySelector('#serving')?.textContent === 'version 0')
  await keyed.close()
}

// A chat: what was typed and what was answered is text, whatever it looks like.
await page.waitForSelector('#serving')
await accessible('an empty chat')
await picture('chat-empty')
const attack = '<img src=x onerror="document.title=1"><b>bold</b>'
await ask(attack)
assert.equal(await text('.asked p'), attack)
assert.equal(await page.$('.talk img, .talk b'), null)
assert.match(await text('.answer .facts'), /version 0/)

// A rating says what it will do.
await press('Good answer')
await until('Kept: 1 of 4 ratings are in, 3 more begin the next step.', '.effect')
assert.equal(await page.$eval('[aria-label="Good answer"]', button => button.getAttribute('aria-pressed')), 'true')

// A correction is kept as text too, and the talk goes on from it.
await press('Fix it')
await page.waitForSelector('.fix textarea')
await page.$eval('.fix textarea', area => { area.value = '' })
await page.type('.fix textarea', 'Better <i>so</i>.')
await press('Save the correction')
await until('The talk goes on from your words.', '.effect')

// Another answer beside it, and a choice.
await press('Another')
await page.waitForSelector('.choice')
assert.equal(await page.$$eval('.answers.two > .answer', all => all.length), 2)
await picture('chat-two')
await press('The second is better')
await page.waitForSelector('.chosen')
await until('Kept as a pair', '.choice .effect')

// An answer is stopped with a key, and what was written stays. Random weights may end one before that: then once more.
await press('Settings')
const set = (name, value) => page.$eval(`[name="${name}"]`, (input, value) => { input.value = value }, value)
await set('max_tokens', '1800')
for (let tries = 0; ; tries++) {
  assert.ok(tries < 8, 'no answer could be stopped')
  await page.evaluate(() => {
    const stop = new MutationObserver(() => {
      if (!document.querySelector('.text.running')?.textContent) return
      stop.disconnect()
      document.querySelector('#question').dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))
    })
    stop.observe(document.querySelector('.talk'), { childList: true, subtree: true, characterData: true })
  })
  await ask('Go on and on.')
  if ((await text('.turn:last-child .facts')).includes('stopped')) break
}
await set('max_tokens', '')

// An error that can be read, and the question is not lost.
await press('New chat')
await page.$eval('#question', area => { area.value = 'word '.repeat(3000) })
await page.type('#question', 'x')
await page.keyboard.press('Enter')
await until('context', '#chat [role="alert"]')
assert.match(await text('#chat [role="alert"]'), /^The prompt has .* leaves no room for an answer\.$/)
assert.match(await page.$eval('#question', area => area.value), /^word word/)
await picture('chat-error')
await page.$eval('#question', area => { area.value = '' })

// Enough ratings make a version, which appears without a reload and says that it has learned.
await page.evaluate(() => { window.sameDocument = true })
for (const [i, thumb] of ['Bad answer', 'Good answer', 'Bad answer'].entries()) {
  await ask(`Question ${i}`)
  await press(thumb)
  await until('Kept', '.turn:last-child .effect')
}
await page.waitForFunction(() => document.querySelector('#serving').textContent === 'version 1')
await until('It has taught: in version 1.', '.effect.taught')
assert.equal(await page.evaluate(() => window.sameDocument), true)
await accessible('a chat')
await picture('chat')

// Learning.
await press('New chat')
await page.setViewport({ width: 390, height: 360 })
await ask('And now?')
// What an answer is rated with comes into sight with its end.
assert.ok(await page.evaluate(() => {
  const thumbs = [...document.querySelectorAll('[aria-label="Good answer"]')].at(-1)
  return thumbs.getBoundingClientRect().bottom <= document.querySelector('.composer').getBoundingClientRect().top
}), 'the thumbs lie below the line to type in')
await page.setViewport({ width: 1180, height: 860 })
await page.goto(`${url}/#/learning`)
await until('Rating', 'figure h3')
await page.waitForFunction(() => document.querySelectorAll('.canvas canvas').length === 4)
await until('free', '.card .big')
await accessible('learning')
await picture('learning')

// Versions: the record with its verdict, two beside each other, and back.
await page.goto(`${url}/#/versions`)
await page.waitForFunction(() => document.querySelectorAll('.versions tbody tr').length === 2)
await press('Record of version 1')
await until('Lineage', '[aria-label="Record of version 1"]')
await until('promoted', '[aria-label="Record of version 1"] .chip')
await page.type('[aria-label="Prompt for both"]', 'Say it twice.')
await press('Ask both')
await page.waitForFunction(() => document.querySelectorAll('#versions .answer .facts').length === 2)
assert.deepEqual(await page.$$eval('#versions .answer .facts', all => all.map(f => f.textContent.match(/version \d/)[0])), ['version 0', 'version 1'])
await accessible('versions')
await picture('versions')
await press('Roll back')
await page.waitForFunction(() => document.querySelector('#ask').open)
await press('Roll back', '#ask')
await page.waitForFunction(() => document.querySelector('#serving').textContent === 'version 0')
await until('Version 0 serves.', '#versions [role="status"]')

// Nothing is left to go back to.
await page.waitForFunction(() => document.querySelector('#versions .spread button').hidden)
// The two beside each other are two, the second of which serves.
const beside = () => page.$$eval('#versions select', all => all.map(select => select.value))
assert.deepEqual(await beside(), ['1', '0'])
await page.reload()
await page.waitForFunction(() => document.querySelector('#versions select')?.options.length === 2)
assert.deepEqual(await beside(), ['1', '0'])

// Phone width and dark, in every view: nothing is wider than the screen.
for (const [width, scheme] of [[390, 'dark'], [390, 'light'], [1180, 'dark'], [1180, 'light']]) {
  await page.setViewport({ width, height: 860 })
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
  for (const view of ['chat', 'learning', 'versions']) {
    await page.evaluate(view => { location.hash = `#/${view}` }, view)
    await new Promise(resolve => setTimeout(resolve, 400))
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)
    assert.ok(wide <= 0, `${view} is ${wide} pixels wider than ${width}`)
    if (width < 400) await accessible(`${view}, ${scheme}, ${width} pixels`)
    if (screens) await page.screenshot({ path: join(screens, `${view}-${width}-${scheme}.png`), fullPage: true })
  }
}

// Without the mouse: the first stop is the way past the header, the next one is in the view.
await page.reload()
await page.waitForSelector('#serving')
await page.keyboard.press('Tab')
assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to the content')
await page.keyboard.press('Enter')
await page.keyboard.press('Tab')
assert.equal(await page.evaluate(() => document.activeElement.closest('main section')?.id), 'versions')

assert.deepEqual(troubles, [])
await browser.close()
console.log('ok')
