#!/bin/sh
# Redis as the broker: a password, an append-only file, and no key ever evicted.
# The configuration is read from standard input, so that no command line shows the password.
set -eu
exec redis-server - <<CONFIGURATION
requirepass $(cat /run/secrets/redis_password)
port 6379
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory ${REDIS_MAXMEMORY:-512mb}
maxmemory-policy noeviction
CONFIGURATION
