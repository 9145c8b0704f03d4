"""An MCP server in front of the same jobs: `/mcp`. Only `routes` is imported without the SDK."""
