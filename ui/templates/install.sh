#!/bin/sh
# Installs the worker of a GPUbnb market on this machine:
#   curl -fsSL https://market.example/install.sh | sudo sh -s -- https://market.example
# Without root the program goes to ~/.local/bin, and the worker needs --state for a directory of its own.
# With an enrollment code, also connects this machine and installs the worker as a service:
#   curl -fsSL https://market.example/install.sh | sudo sh -s -- https://market.example CODE
set -eu

fail() { echo "install: $*" >&2; exit 1; }

# The whole script is a function, so that a broken download runs nothing.
install_worker() {
  market="${1:?name the market: sh -s -- https://market.example}" code="${2:-}"
  [ "$(uname -s)" = Linux ] && [ "$(uname -m)" = "{{ architecture }}" ] ||
    fail "this worker runs on Linux on {{ architecture }}, and this machine is $(uname -s) on $(uname -m)"
  [ -z "$code" ] || [ "$(id -u)" = 0 ] || fail "a service needs root: use sudo sh, or leave out the code"
  if [ "$(id -u)" = 0 ]; then directory="${PREFIX:-}/usr/local/bin"; else directory="$HOME/.local/bin"; fi
  mkdir -p "$directory"
  new="$(mktemp "$directory/.gpubnb-provider.XXXXXX")"
  trap 'rm -f "$new"' EXIT
  echo "install: downloading the worker from $market"
  curl -fsSL "$market/download/gpubnb-provider" -o "$new"
  echo "{{ sha256 }}  $new" | sha256sum -c --status - || fail "the download is damaged: try again"
  chmod 755 "$new"
  mv "$new" "$directory/gpubnb-provider"
  echo "install: $directory/gpubnb-provider"
  case ":$PATH:" in
    *":$directory:"*) ;;
    *) echo "install: $directory is not in your PATH. Run: export PATH=\"$directory:\$PATH\"" ;;
  esac
  command -v docker >/dev/null 2>&1 || echo "install: the worker needs Docker: https://docs.docker.com/engine/install/"
  [ -n "$code" ] || return 0
  install_service
}

# Enrolls the machine, and installs the unit and a file of options. Options that are there already are kept.
install_service() {
  command -v systemctl >/dev/null 2>&1 ||
    fail "this machine has no systemd: run gpubnb-provider enroll and gpubnb-provider run yourself"
  mkdir -p /etc/gpubnb
  install -d -m 711 /var/lib/gpubnb
  [ -e /etc/gpubnb/provider.toml ] || cat >/etc/gpubnb/provider.toml <<TOML
# Options of the worker, by their long names (gpubnb-provider run --help). Restart the worker after a change.
name = "$(uname -n)"
price = "0.10"
# When the machine is spare:
# idle-minutes = 10
# hours = "22:00-08:00"
TOML
  cat >/etc/systemd/system/gpubnb-provider.service <<'UNIT'
{{ unit }}UNIT
  "$directory/gpubnb-provider" enroll "$code" --market "$market"
  "$directory/gpubnb-provider" self-test ||
    echo "install: fix the failed checks above. Until then the machine is not listed."
  systemctl daemon-reload
  systemctl enable --now gpubnb-provider
  echo "install: the worker runs. Its options: /etc/gpubnb/provider.toml. Its page: sudo gpubnb-provider open"
}

install_worker "$@"
