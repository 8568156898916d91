#!/usr/bin/env bash
# Runs a command, the tests of attacks, on networks of its own: its network namespace has a loopback and one way out,
# which leads to a second namespace. That one has the addresses that an owner's local network, a Docker bridge or a
# cloud's metadata could have. Nothing may arrive there, and nothing can go further. Fails if anything arrived.
#
# Only the network is separate: the command uses the same files and the same Docker engine. Needs root.
set -euo pipefail
fail() { echo "attack: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "network namespaces need root: run this with sudo"
command -v ip >/dev/null && command -v nsenter >/dev/null || fail "please install iproute2 and util-linux"

market="gpubnb-market-$$" victims="gpubnb-victims-$$"
clean_up() {
  status=$?
  ip netns delete "$market" 2>/dev/null || true
  ip netns delete "$victims" 2>/dev/null || true
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
ip netns add "$market"
ip netns add "$victims"
ip link add out netns "$market" type veth peer name in netns "$victims"
for address in 10.0.0.1/24 192.168.1.1/24 172.17.0.1/16 169.254.169.254/16 100.64.0.1/24; do
  ip -n "$victims" address add "$address" dev in
done
ip -n "$victims" address add fd00::1/64 dev in nodad
ip -n "$market" address add 10.0.0.2/24 dev out
ip -n "$market" address add fd00::2/64 dev out nodad
for place in "$market lo" "$market out" "$victims lo" "$victims in"; do
  ip -n "${place% *}" link set "${place#* }" up
done
# Everything that is not local leaves by this way, so the victims' addresses are reached as real ones would be.
ip -n "$market" route add default via 10.0.0.1
ip -n "$market" route add default via fd00::1

# Only the network namespace is entered: disks that the command mounts must be seen by the Docker engine.
inside() { nsenter --net="/run/netns/$market" "$@"; }
# The segments of TCP and the datagrams of UDP and ICMP that arrived at the victims. An attempt to connect is a segment,
# also if nobody listens.
arrived() {
  nsenter --net="/run/netns/$victims" awk '
    /^Tcp: [0-9]/ { sum += $11 }
    /^Udp: [0-9]/ { sum += $2 + $3 }
    /^Icmp: [0-9]/ { sum += $2 }
    /^Udp6(InDatagrams|NoPorts)/ { sum += $2 }
    END { print sum }' /proc/net/snmp /proc/net/snmp6
}
for victim in 10.0.0.1 192.168.1.1 172.17.0.1 169.254.169.254 100.64.0.1 fd00::1; do
  before="$(arrived)"
  inside timeout 2 bash -c "exec 3<>/dev/tcp/$victim/80" 2>/dev/null || true
  [ "$(arrived)" -gt "$before" ] || fail "an attempt to connect to $victim did not arrive, so these networks prove nothing"
done
before="$(arrived)"
inside "$@"
[ "$(arrived)" = "$before" ] || fail "$(($(arrived) - before)) packets reached the local network beside the market"
echo "attack: nothing reached the local network beside the market"
