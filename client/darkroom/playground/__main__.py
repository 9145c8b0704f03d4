"""`python -m darkroom.playground`: serve the playground until it is stopped."""

import argparse
import os
import sys
from pathlib import Path

from darkroom.extras import how_to_install

APP = Path(__file__).with_name("server.py")
DEFAULT_PORT = 8501
LOOPBACK = "127.0.0.1"
ASKS_FOR_KEY = "DARKROOM_PLAYGROUND_ASKS_FOR_KEY"
"""Variable for the page: `1` where the playground has no key of its own to lend."""
LOCAL_NAMES = ("localhost", LOOPBACK)


def main() -> None:
    """Become Streamlit's server; `DARKROOM_URL` and `DARKROOM_API_KEY` name the API."""
    arguments = _parse()
    hint = how_to_install("playground", {name: name for name in ("streamlit", "humanize")})
    if hint is not None:
        sys.exit(f"The playground cannot start: {hint}")
    command = [sys.executable, "-m", "streamlit", "run", str(APP)]
    command += [f"--server.port={arguments.port}", f"--server.address={arguments.address}"]
    # Outside `site-packages`, as in a container, Streamlit believes itself a checkout of its own.
    command.append("--global.developmentMode=false")
    # Any other name in the Host header is another site whose name resolves to this machine (DNS
    # rebinding); it would use the key.
    command += [f"--server.allowedHosts={name}" for name in (*LOCAL_NAMES, *arguments.host)]
    command += [f"--browser.serverAddress={name}" for name in arguments.host[:1]]
    if _asks(arguments):
        os.environ[ASKS_FOR_KEY] = "1"
        os.environ.pop("DARKROOM_API_KEY", None)  # nobody is to use the operator's
    os.execv(sys.executable, command)  # noqa: S606  # this process has nothing else to do


def _asks(arguments: argparse.Namespace) -> bool:
    """Whether users need API keys of their own."""
    is_local = arguments.address in {*LOCAL_NAMES, "::1"}
    return bool(arguments.key == "own" or (arguments.key is None and not is_local))


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
        help=f"default: {LOOPBACK}; on any other, users enter their own API keys",
    )
    parser.add_argument(
        "--key",
        choices=["own", "shared"],
        help="own: each user enters an API key, kept for that browser tab; shared: all use the "
        "playground's. Default: shared on a loopback address, otherwise own",
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name, besides localhost, under which browsers reach it; repeatable",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
