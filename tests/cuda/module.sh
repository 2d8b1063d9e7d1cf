#!/bin/bash
# module.sh SOURCE.cu MODULE.so FLAGS...: compiles kernels for the CPU, with a table of them that the emulated driver reads.
set -euo pipefail
source=$1 module=$2 flags=("${@:3}")
here=$(cd "$(dirname "$0")" && pwd)
cxx=${CXX:-g++} text=${module%.so}.ii
"$cxx" -E -std=c++17 -xc++ -D__CUDACC__ -D__CUDA_ARCH__=800 -I"$here" -include "$here/device.h" "${flags[@]}" "$source" |
    # Dynamic shared memory is where the launch has put it.
    sed -E '/extern\s+__shared__/{
        s/__attribute__\(\(aligned\([^)]*\)\)\)//g
        s/extern\s+__shared__\s+([A-Za-z_][A-Za-z_0-9: ]*[A-Za-z_0-9])\s+([A-Za-z_0-9]+)\s*\[\s*\]\s*;/\1 *\2 = emu::dynamic_shared<\1>();/g
    }' >"$text"
{
    echo '# 1 "the table of kernels"'
    echo 'extern "C" { __attribute__((visibility("default"))) emu::Kernel emu_kernels[] = {'
    grep -v '^#' "$text" | tr '\n' ' ' |
        grep -oP 'extern\s+"C"\s+(?:__global__|__launch_bounds__\s*\([^)]*\)|void|\s)+\K\w+(?=\s*\()' | sort |
        sed 's/.*/{"&", [](void **given) { emu::call(&, given); }, [](void **given) { emu::check(&, given); }},/' || true
    echo '{nullptr, nullptr, nullptr}};'
    echo '__attribute__((visibility("default"))) void *emu_shared() { static thread_local int any; return &any; } }'
} >"$text.table"
cat "$text.table" >>"$text" && rm "$text.table"
# An index beyond an array of known size and an address that isn't aligned call the emulator, which says where.
"$cxx" -c -std=c++17 -xc++ -O2 -march=native -g1 -fPIC -fvisibility=hidden -fno-gnu-unique -fno-strict-aliasing -fwrapv \
    -fsanitize=bounds,alignment -fno-sanitize-recover=bounds,alignment -D__global__= '-D__launch_bounds__(...)=' -D__shared__=thread_local \
    -Wall -Wno-unknown-pragmas "${flags[@]}" -o "${module%.so}.o" "$text"
"$cxx" -shared -Wl,--no-undefined -o "$module" "${module%.so}.o" "$(dirname "$module")/../lib64/libcuda.so.1"
