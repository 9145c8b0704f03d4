"""OpenAI's image API: `/openai/v1`, and `/v1/images/generations` and `/edits`."""
