#!/bin/sh
# An S3 store over a folder: signed requests and presigned URLs. A bucket is a folder in /srv/s3.
set -eu
RCLONE_AUTH_KEY="\"$(cat /run/secrets/darkroom_s3_access_key),$(cat /run/secrets/darkroom_s3_secret_key)\""
export RCLONE_AUTH_KEY
export RCLONE_CONFIG=/dev/null
exec rclone serve s3 --addr=:9000 --cache-dir=/tmp/rclone --no-cleanup /srv/s3
