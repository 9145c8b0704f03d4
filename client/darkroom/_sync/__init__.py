# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""The blocking client."""
