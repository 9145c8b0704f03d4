#!/bin/sh
# Run once by the Postgres image, when its data folder is new.
set -eu
DARKROOM_OWNER_PASSWORD="$(cat /run/secrets/database_password)"
export DARKROOM_OWNER_PASSWORD
exec psql --username "$POSTGRES_USER" --dbname postgres --file /etc/darkroom/prepare.sql
