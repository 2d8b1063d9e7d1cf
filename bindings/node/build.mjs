// Compiles the addon with the headers of this machine: those beside node, /usr/include/node, or NODE_INCLUDE. APA_LIB_DIR is the
// folder of libapa.so, which is built first where this is a checkout without one; APA_INCLUDE that of apa.h. Downloads nothing.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../..');
const folder = (name, candidates, file) => {
  const found = candidates.filter(Boolean).find((candidate) => existsSync(join(candidate, file)));
  if (found) return resolve(found);
  console.error(`build: no ${file} found; ${name} says where it is`);
  process.exit(1);
};

const include = folder('APA_INCLUDE', [process.env.APA_INCLUDE, join(root, 'include'), '/usr/local/include'], 'apa.h');
const built = resolve(root, process.env.CARGO_TARGET_DIR ?? 'target', 'release');
const libraries = [process.env.APA_LIB_DIR, built, '/usr/local/lib'];
if (existsSync(join(root, 'Cargo.toml')) && !libraries.some((at) => at && existsSync(join(at, 'libapa.so')))) {
  console.error('build: no libapa.so yet; cargo makes it, which takes some ten minutes');
  execFileSync('cargo', ['build', '--release', '--locked', '--lib'], { cwd: root, stdio: 'inherit' });
}
const library = folder('APA_LIB_DIR', libraries, 'libapa.so');
const node = folder('NODE_INCLUDE', [process.env.NODE_INCLUDE, resolve(process.execPath, '../../include/node'), '/usr/include/node'],
  'node_api.h');

mkdirSync(join(here, 'build'), { recursive: true });
const arguments_ = ['-std=c99', '-D_POSIX_C_SOURCE=200809L', '-O2', '-fPIC', '-shared', '-fvisibility=hidden', '-pthread', '-Wall',
  '-Wextra', '-Werror', '-DNODE_GYP_MODULE_NAME=apa', '-I', include, '-isystem', node, join(here, 'src/addon.c'),
  join(here, 'src/jobs.c'), '-L', library, '-lapa', `-Wl,-rpath,${library}`, '-o', join(here, 'build/apa.node')];
execFileSync(process.env.CC ?? 'cc', arguments_, { stdio: 'inherit' });
