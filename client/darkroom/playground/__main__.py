"""`python -m darkroom.playground`: serves the playground until it is stopped."""

import argparse
import os
import sys
from pathlib import Path

from darkroom.extras import how_to_install

APP = Path(__file__).with_name("server.py")
DEFAULT_PORT = 8501
LOOPBACK = "127.0.0.1"
LOCAL_NAMES = ("localhost", LOOPBACK)


def main() -> None:
    """Becomes Streamlit's server; `DARKROOM_URL` and `DARKROOM_API_KEY` name the API."""
    arguments = _parse()
    hint = how_to_install("playground", {"streamlit": "streamlit"})
    if hint is not None:
        sys.exit(f"The playground cannot start: {hint}")
    command = [sys.executable, "-m", "streamlit", "run", str(APP)]
    command += [f"--server.port={arguments.port}", f"--server.address={arguments.address}"]
    # Another name in the Host header is a strange page that has its own name lead here (DNS
    # rebinding), and would use the key.
    command += [f"--server.allowedHosts={name}" for name in (*LOCAL_NAMES, *arguments.host)]
    command += [f"--browser.serverAddress={name}" for name in arguments.host[:1]]
    os.execv(sys.executable, command)  # noqa: S606  # becoming that server is all there is to do


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m darkroom.playground", description=__doc__)
    parser.add_argument(
        "--port",
        type=int,
        default=int(os.environ.get("DARKROOM_PLAYGROUND_PORT") or DEFAULT_PORT),
        help=f"default: DARKROOM_PLAYGROUND_PORT or {DEFAULT_PORT}",
    )
    parser.add_argument(
        "--address",
        default=LOOPBACK,
        help=f"default: {LOOPBACK}; whoever reaches another one uses your API key",
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which browsers reach it, beside localhost; may be repeated",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
