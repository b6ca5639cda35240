#!/bin/sh
# Cron: what a job has to say, kept and readable live, with nothing but curl. In a crontab it is one line:
#
#     */5 * * * * df -P / | curl -fsS --retry 3 -T - -X POST -H 'Content-Type: text/plain' http://127.0.0.1:4000/v1/stream/cron/disk
#
# after the stream was made once. This program does both: `examples/cron.sh URL COMMAND…`. Watch it: `curl -N "URL?offset=-1&live=sse"`.
set -eu
url=$1
shift
curl -fsS -X PUT -H 'Content-Type: text/plain' ${STREAMKEEP_KEY:+-H "Streamkeep-Key: $STREAMKEEP_KEY"} "$url" >/dev/null
"$@" | curl -fsS -T - -X POST -H 'Content-Type: text/plain' ${STREAMKEEP_KEY:+-H "Streamkeep-Key: $STREAMKEEP_KEY"} "$url"
