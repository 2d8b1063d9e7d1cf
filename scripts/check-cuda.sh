#!/bin/bash
# Compiles the trainer's CUDA path with its kernels, so that it can't rot unseen; no GPU is needed, and nothing is run. Installs
# the CUDA 13.0 compiler from PyPI where nvcc is missing (newer ones are refused by cudarc). Takes about ten minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/cuda-env.sh
nvcc --version | tail -n2
# A folder of its own: other features would rebuild the ordinary one.
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/check-cuda" cargo check --release --locked --features train-cuda
