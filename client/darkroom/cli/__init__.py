"""The command line, `darkroom`: it does whatever the public HTTP API can."""
