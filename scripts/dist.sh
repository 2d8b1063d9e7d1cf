#!/bin/bash
# A release for many machines: dist.sh OUT. On x86-64 it holds a whole build for each level of LEVELS, of which apad and libapa.so
# take the fastest that the processor has when they start; x86-64-v3 is the floor. ARCH=aarch64 cross-builds for armv8-a, one level.
# What was built before is kept in $CARGO_TARGET_DIR/dist.
set -euo pipefail

out=$(realpath -m "${1:?usage: dist.sh OUT}")
source=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$source/target}/dist
arch=${ARCH:-$(uname -m)}
cc=${CC:-cc}
version=$(sed -n '0,/^version = "\(.*\)"$/s//\1/p' "$source/Cargo.toml")
cd "$source"

build() { # level, flags of rustc
    # In place of the flags in .cargo/config.toml, which are for the machine that builds.
    RUSTFLAGS="$2" CARGO_TARGET_DIR="$target/$1" cargo build --release --locked ${triple:+--target "$triple"}
}

case $arch in
x86_64)
    # Processors whose names both compilers know: the second has VNNI, the first BF16 as well. scripts/dist/level.h has the same list.
    levels=${LEVELS:-cooperlake cascadelake x86-64-v4 x86-64-v3}
    triple=
    for level in $levels; do
        build "$level" "-C target-cpu=$level"
    done
    ;;
aarch64)
    levels=
    triple=aarch64-unknown-linux-gnu
    rustup target add "$triple" >/dev/null
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export BINDGEN_EXTRA_CLANG_ARGS="--target=$triple --sysroot=/usr/aarch64-linux-gnu -I/usr/aarch64-linux-gnu/include"
    # The least of them is what both compilers assume; rustc's name of it, generic, is none of the other's.
    build aarch64 "-C debuginfo=0"
    ;;
*)
    echo "dist.sh: ARCH is $arch, expected x86_64 or aarch64" >&2
    exit 2
    ;;
esac

rm -rf "$out"
mkdir -p "$out"
tree=$out/libapa-$version-$arch-linux
if [ "$arch" = aarch64 ]; then
    CC=aarch64-linux-gnu-gcc CROSS=aarch64-linux-gnu- DESTDIR="$tree" PREFIX=/ scripts/install.sh "$target/aarch64/$triple/release"
else
    for level in $levels; do
        part=$target/$level/install
        rm -rf "$part"
        DESTDIR="$part" PREFIX=/ scripts/install.sh "$target/$level/release"
        # Headers, packages and the static library are those of the floor, which comes last.
        mkdir -p "$tree" && cp -a "$part"/. "$tree"
        mkdir -p "$tree/lib/apa/$level"
        cp -L "$part/lib/libapa.so" "$tree/lib/apa/$level/libapa.so"
        mv "$tree/bin/apad" "$tree/lib/apa/$level/apad"
    done
    soname=$(readelf -d "$tree/lib/libapa.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
    own=$target/choose
    mkdir -p "$own"
    grep -oE '\bapa_[a-z_]+\(' include/apa.h | tr -d '(' | sort -u | sed 's/.*/APA_FUNCTION(&)/' >"$own/names.h"
    flags="-O2 -march=x86-64 -Wall -Wextra -Werror -I$own -Iscripts/dist"
    # shellcheck disable=SC2086
    "$cc" $flags -o "$tree/bin/apad" scripts/dist/apad.c
    printf 'APA_%s { global: apa_*; local: *; };\n' "${soname##*.}" >"$own/exports"
    # shellcheck disable=SC2086
    "$cc" $flags -fPIC -shared -o "$tree/lib/$(readlink "$tree/lib/$soname")" scripts/dist/libapa.c -Wl,-soname,"$soname" \
        -Wl,--version-script="$own/exports" -Wl,-z,relro,-z,now -Wl,-z,defs -ldl
fi
install -D -m 644 LICENSE* README.md -t "$tree/share/doc/libapa" 2>/dev/null || install -D -m 644 README.md -t "$tree/share/doc/libapa"
tar -C "$out" -czf "$out/$(basename "$tree").tar.gz" "$(basename "$tree")"
ARCH=$arch scripts/wheel.sh "$tree" "$out"
(cd "$out" && sha256sum "$(basename "$tree").tar.gz" libapa-*.whl >SHA256SUMS)
echo "made $out/$(basename "$tree").tar.gz"
