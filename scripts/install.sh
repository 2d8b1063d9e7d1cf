#!/bin/bash
# Installs libapa and apad: install.sh FOLDER_OF_THE_BUILD. PREFIX (/usr/local) is where they will live, DESTDIR is put in front of
# it, for packages. Both libraries are made of one object in which only what apa.h declares is global: llama.cpp, SQLite and Rust's own symbols are
# out of the way of an application that has its own.
set -euo pipefail

build=${1:?usage: install.sh FOLDER_OF_THE_BUILD}
source=$(cd "$(dirname "$0")/.." && pwd)
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}$prefix
cc=${CC:-cc}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

abi=$(sed -n 's/^#define APA_ABI_VERSION \([0-9]*\)$/\1/p' "$source/include/apa.h")
major=$((abi >> 16))
minor=$((abi & 0xffff))
version=$(sed -n '0,/^version = "\(.*\)"$/s//\1/p' "$source/Cargo.toml")
# What Rust's standard library and llama.cpp want of the system.
needs="-lstdc++ -lgcc_s -lpthread -lm -ldl -lc"

# Groups of C++ are resolved here: the linker would else drop ours for the application's own of the same name.
grep -oE '\bapa_[a-z_]+\(' "$source/include/apa.h" | tr -d '(' | sort -u >"$work/names"
# shellcheck disable=SC2046
"${CROSS:-}ld" -r --force-group-allocation $(sed 's/^/-u/' "$work/names") "$build/libapa.a" -o "$work/apa.o"
# Rust's bitcode is for linkers that optimize; merged it is none.
"${CROSS:-}objcopy" --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd "$work/apa.o"
# C++ has variables that are one in the whole process; objcopy can't make them local, so ours get names of their own.
"${CROSS:-}nm" "$work/apa.o" | sed -n 's/^[0-9a-f]* u \(.*\)$/\1 _apa_\1/p' | sort -u >"$work/renamed"
"${CROSS:-}objcopy" --keep-global-symbols="$work/names" --redefine-syms="$work/renamed" "$work/apa.o"
"${CROSS:-}ar" rcs "$work/libapa.a" "$work/apa.o"
printf 'APA_%s { global: apa_*; local: *; };\n' "$major" >"$work/exports"
# shellcheck disable=SC2086
"$cc" -shared -o "$work/libapa.so" "$work/apa.o" -Wl,-soname,libapa.so."$major" -Wl,--gc-sections -Wl,--version-script="$work/exports" \
    -Wl,-z,relro,-z,now -Wl,-z,defs $needs
"${CROSS:-}strip" --strip-unneeded "$work/libapa.so"

install -d "$root/include" "$root/lib/pkgconfig" "$root/lib/cmake/apa"
install -m 644 "$source/include/apa.h" "$source/include/apa.hpp" "$root/include"
install -m 644 "$work/libapa.a" "$root/lib/libapa.a"
install -m 755 "$work/libapa.so" "$root/lib/libapa.so.$major.$minor"
ln -sf "libapa.so.$major.$minor" "$root/lib/libapa.so.$major"
ln -sf "libapa.so.$major" "$root/lib/libapa.so"
if [ -x "$build/apad" ]; then
    install -d "$root/bin"
    install -m 755 -s --strip-program="${CROSS:-}strip" "$build/apad" "$root/bin/apad"
fi

# Both find themselves by their own place, so that the tree can be moved.
pkg() { # name, libraries
    cat >"$root/lib/pkgconfig/$1.pc" <<END
prefix=\${pcfiledir}/../..
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: $1
Description: Serves a language model and keeps aligning it with the people who use it
Version: $version
Libs: $2
Cflags: -I\${includedir}
END
}
pkg apa "-L\${libdir} -lapa"
pkg apa-static "\${libdir}/libapa.a $needs"

cat >"$root/lib/cmake/apa/apa-config.cmake" <<END
# apa::apa is the shared library, apa::static the other one.
get_filename_component(_apa_prefix "\${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET apa::apa)
  add_library(apa::apa SHARED IMPORTED)
  set_target_properties(apa::apa PROPERTIES
    IMPORTED_LOCATION "\${_apa_prefix}/lib/libapa.so.$major.$minor"
    IMPORTED_SONAME "libapa.so.$major"
    INTERFACE_INCLUDE_DIRECTORIES "\${_apa_prefix}/include")
  add_library(apa::static STATIC IMPORTED)
  set_target_properties(apa::static PROPERTIES
    IMPORTED_LOCATION "\${_apa_prefix}/lib/libapa.a"
    INTERFACE_LINK_LIBRARIES "${needs// /;}"
    INTERFACE_INCLUDE_DIRECTORIES "\${_apa_prefix}/include")
endif()
unset(_apa_prefix)
END
cat >"$root/lib/cmake/apa/apa-config-version.cmake" <<END
set(PACKAGE_VERSION "$version")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
END
echo "installed libapa $version in $root"
