"""The command line `darkroom`: a thin face of `darkroom.Client`, one module per group of commands.

Results go to stdout, everything else to stderr; `exits.py` lists the exit codes.
"""
