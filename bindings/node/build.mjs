// Compiles the addon with the headers of this machine: those beside node, /usr/include/node, or NODE_INCLUDE. APA_LIB_DIR is the
// folder of libapa.so, APA_INCLUDE that of apa.h; else they are those of the checkout, where this is one (the library is built first
// if it isn't there), or what pkg-config knows as apa, or below /usr/local. Downloads nothing.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../..');
// Not any folder that this was installed into.
const checkout = existsSync(join(root, 'include/apa.h')) && resolve(root, 'bindings/node') === here;
const folder = (name, candidates, file) => {
  const found = candidates.filter(Boolean).find((candidate) => existsSync(join(candidate, file)));
  if (found) return resolve(found);
  console.error(`build: no ${file} found; ${name} says where it is (README.md says what is needed)`);
  process.exit(1);
};
const installed = (variable) => {
  try {
    return execFileSync('pkg-config', [`--variable=${variable}`, 'apa'], { stdio: ['ignore', 'pipe', 'ignore'] }).toString().trim();
  } catch {
    return undefined; // No pkg-config, or it knows no apa.
  }
};

const built = resolve(root, process.env.CARGO_TARGET_DIR ?? 'target', 'release');
const libraries = [process.env.APA_LIB_DIR, checkout && built, installed('libdir'), '/usr/local/lib'];
if (checkout && !libraries.some((at) => at && existsSync(join(at, 'libapa.so')))) {
  console.error('build: no libapa.so yet; cargo makes it, which takes some ten minutes');
  execFileSync('cargo', ['build', '--release', '--locked', '--lib'], { cwd: root, stdio: 'inherit' });
}
const library = folder('APA_LIB_DIR', libraries, 'libapa.so');
const include = folder('APA_INCLUDE', [process.env.APA_INCLUDE, checkout && join(root, 'include'), join(library, '../include'),
  installed('includedir'), '/usr/local/include'], 'apa.h');
const node = folder('NODE_INCLUDE', [process.env.NODE_INCLUDE, resolve(process.execPath, '../../include/node'), '/usr/include/node'],
  'node_api.h');

mkdirSync(join(here, 'build'), { recursive: true });
// Another process may be loading the addon, or building it.
const made = join(here, `build/apa.node-${process.pid}`);
const arguments_ = ['-std=c99', '-D_POSIX_C_SOURCE=200809L', '-O2', '-fPIC', '-shared', '-fvisibility=hidden', '-pthread', '-Wall',
  '-Wextra', '-Werror', '-DNODE_GYP_MODULE_NAME=apa', '-I', include, '-isystem', node, join(here, 'src/addon.c'),
  join(here, 'src/jobs.c'), join(here, 'src/log.c'), '-L', library, '-lapa', `-Wl,-rpath,${library}`, '-o', made];
execFileSync(process.env.CC ?? 'cc', arguments_, { stdio: 'inherit' });
renameSync(made, join(here, 'build/apa.node'));
