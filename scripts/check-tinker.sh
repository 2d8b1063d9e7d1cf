#!/bin/bash
# Checks training on a Tinker server against SkyRL's of PyPI, on the CPU; see check-tinker.py, to which arguments go.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/tinker

if ! "$venv/bin/python" -c 'import skyrl, jax, flax, optax, torch, peft, gguf, fastapi, aiosqlite' 2>/dev/null; then
    echo "installing skyrl with JAX, and gguf, to $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'skyrl[tinker,jax]==0.3.0' gguf
fi

PYTHONWARNINGS=ignore exec "$venv/bin/python" scripts/check-tinker.py "$@"
