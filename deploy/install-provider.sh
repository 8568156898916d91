#!/usr/bin/env bash
# Installs the worker as a service: its program, a file of options, and the unit. With a code it enrolls the machine:
#   sudo deploy/install-provider.sh target/worker/gpubnb-provider [<code> <market address>]
# The script names every file that it writes, overwrites no options, and starts no worker that is not enrolled. With PREFIX
# set, all files go below that directory, to try the script out.
set -euo pipefail
binary="${1:?name the program: target/worker/gpubnb-provider, which make worker builds}"
code="${2:-}" market="${3:-}"
root="${PREFIX:-}"
here="$(cd "$(dirname "$0")" && pwd)"
fail() { echo "install: $*" >&2; exit 1; }
[ -x "$binary" ] || fail "$binary is no program: build the worker first (make worker)"
[ -z "$code" ] || [ -n "$market" ] || fail "a code goes with the market's address: $0 $binary $code https://market.example"
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run it as root"

echo "install: $root/usr/local/bin/gpubnb-provider"
install -D -m 755 "$binary" "$root/usr/local/bin/gpubnb-provider"
echo "install: $root/etc/systemd/system/gpubnb-provider.service"
install -D -m 644 "$here/gpubnb-provider.service" "$root/etc/systemd/system/gpubnb-provider.service"
options="$root/etc/gpubnb/provider.toml"
if [ -e "$options" ]; then
  echo "install: $options is there already: kept"
else
  echo "install: $options"
  install -D -m 644 /dev/stdin "$options" <<TOML
# Options of the worker, by their long names (gpubnb-provider run --help). Restart the worker after a change.
name = "$(uname -n)"
price = "0.10"
# When the machine is spare:
# idle-minutes = 10
# hours = "22:00-08:00"
TOML
fi
[ -z "$root" ] || exit 0
install -d -m 711 /var/lib/gpubnb
[ -z "$code" ] || /usr/local/bin/gpubnb-provider enroll "$code" --market "$market"
/usr/local/bin/gpubnb-provider self-test || echo "install: mend the failed checks above; until then the machine is not listed"
systemctl daemon-reload
if [ -e /var/lib/gpubnb/enrollment.json ]; then
  systemctl enable --now gpubnb-provider
  echo "install: the worker runs. See: gpubnb-provider status"
else
  echo "install: enroll the machine (gpubnb-provider enroll), then: systemctl enable --now gpubnb-provider"
fi
