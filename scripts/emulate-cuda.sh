#!/bin/bash
# Builds and runs what needs CUDA where there is no GPU: the command gets a toolkit to build with and a device to run on, both
# emulated on the CPU by tests/cuda. It is for tests, never a part of a product.
#
#     scripts/emulate-cuda.sh cargo nextest run --release --locked --features train-cuda NAME
#     scripts/emulate-cuda.sh --check    # tries the emulation itself
#
# It shows which calls are made with what, every kernel's arithmetic, what is read beyond a buffer or before it was written,
# barriers that not all threads reach, and memory that runs out (EMU_MEMORY_MB). It can't show speed, races between blocks or
# streams, what the real compiler makes of the kernels (scripts/check-cuda.sh compiles them), or how memory is accessed.
#
#   EMU_MEMORY_MB=81559     memory of the device; the peak is told at the end
#   EMU_THREADS=cores       threads that run blocks
#   EMU_ORDER=reverse       runs blocks, and threads between barriers, last to first: results that change missed a barrier
#   EMU_PROFILE=1           tells at the end how often each kernel was launched, and the time that it took here
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# A folder of its own: other features would rebuild the ordinary one.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}/emulated-cuda"
toolkit=$CARGO_TARGET_DIR/toolkit
mkdir -p "$toolkit"
crate() {
    cargo metadata --manifest-path "$root/Cargo.toml" --locked --format-version 1 --features train-cuda |
        grep -oE "\"manifest_path\":\"[^\"]*/$1-[0-9][^\"]*\"" | cut -d'"' -f4 | xargs dirname
}
target=all
[ "$1" = --check ] && target=check
make -s -C "$root/tests/cuda" -j"$(nproc)" OUT="$toolkit" CUDARC="$(crate cudarc)" CANDLE="$(crate candle-kernels)" \
    KERNELS="$root/src/policy/ops/cuda" "$target" >&2
[ "$target" = check ] && exit
export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit PATH="$toolkit/bin:$PATH" CUDA_COMPUTE_CAP=80
export LD_LIBRARY_PATH="$toolkit/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" EMU_MODULES=$toolkit/modules
exec "$@"
