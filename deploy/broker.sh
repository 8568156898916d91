#!/bin/sh
# Runs a broker without others, and ends with status 1 when the broker can no longer write to its streams. When its disk
# is full, nats-server goes on to run, and stores nothing any more, also when there is room again. Whoever started this
# script, such as Compose or systemd, starts it again. A broker of a cluster also says that it is not healthy while it
# catches up, so this script is not for clusters.
#
#   broker.sh ADDRESS COMMAND...
#
# ADDRESS is where the broker's own monitoring listens (`gpubnb-services bootstrap --monitor`), and COMMAND starts the
# broker, such as `nats-server --config /keys/nats.conf`. Needs a POSIX shell and wget.
set -u
monitor="$1"
shift
"$@" &
broker=$!
trap 'kill -TERM "$broker" 2>/dev/null' TERM INT
# A broker that recovers its streams is not healthy yet, so failures count after the first success only.
was_healthy='' failures=0 seconds=0
while kill -0 "$broker" 2>/dev/null; do
  sleep 1 &
  wait $!
  seconds=$((seconds + 1))
  [ -z "$was_healthy" ] || [ $((seconds % 5)) = 0 ] || continue
  if wget -q -T 3 -O /dev/null "http://$monitor/healthz"; then
    was_healthy=yes failures=0
  elif [ -n "$was_healthy" ]; then
    failures=$((failures + 1))
  fi
  if [ "$failures" -ge 4 ]; then
    echo "broker.sh: the broker cannot write, most often because its disk is full: it is ended" >&2
    kill -TERM "$broker"
    wait "$broker"
    exit 1
  fi
done
wait "$broker"
