#!/bin/bash
# Compiles the trainer's CUDA path with its kernels, so that it can't rot unseen; no GPU is needed, and nothing is run. Installs
# the CUDA 13.0 compiler from PyPI where nvcc is missing (newer ones are refused by cudarc). Takes about ten minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/cuda
    toolkit() { compgen -G "$venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc"; }
    if ! toolkit >/dev/null; then
        echo "installing the CUDA 13.0 compiler to $venv" >&2
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet "cuda-toolkit[nvcc,cccl,crt,nvvm,cudart,curand]==13.0.*"
    fi
    nvcc=$(toolkit | head -n1)
    export CUDA_HOME=${nvcc%/bin/nvcc}
fi
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export CUDA_PATH=$CUDA_HOME CUDA_ROOT=$CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
# There may be no GPU to ask.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
nvcc --version | tail -n2
# A folder of its own: other features would rebuild the ordinary one.
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/check-cuda" cargo check --release --locked --features train-cuda
