#!/bin/sh
# One URL, three readers: this one with curl, to the end of the stream. `examples/read.sh URL`
exec curl -fsSN "$1?offset=-1&live=sse"
