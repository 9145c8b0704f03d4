"""All of Darkroom on one machine: embedded Postgres, Redis and S3, the API and the workers."""
