"""Where a wheel keeps Darkroom's packages, out of the way of other people's `api` and `shared`.

In a checkout they lie beside this folder. See docs/adr/0013-one-command.md.
"""
