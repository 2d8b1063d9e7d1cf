#!/bin/bash
# Compares the log-probabilities of both engines with those of transformers, on small random models of each architecture that
# can be trained; see check-transformers.py, to which arguments go. Settings by environment: APAD (binary).
set -euo pipefail
cd "$(dirname "$0")/.."

export APAD=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/peer

if ! "$venv/bin/python" -c 'import torch, transformers, peft, gguf' 2>/dev/null; then
    echo "installing torch, transformers, peft and gguf to $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch transformers peft gguf
fi

PYTHONWARNINGS=ignore exec "$venv/bin/python" scripts/check-transformers.py "$@"
