"""`darkroom-server worker generate [--model NAME …]` and `darkroom-server worker cpu`."""

import argparse
import atexit
import os
import sys

from shared.core.errors import FilterUnavailable, ModelUnavailable
from shared.core.logging import configure_logging
from shared.core.model_catalog import CatalogError, ModelSpec, load_catalog
from shared.core.settings import Settings, SettingsError, get_settings
from shared.core.telemetry import configure_tracing, shut_down_tracing

EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: starting again changes nothing until somebody mends it."""


def main() -> int:
    """Parse the command line and run the worker; the exit code says whether a restart can help."""
    parser = argparse.ArgumentParser(prog="darkroom-server worker", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("cpu", help="dispatcher, query embeddings, webhooks, housekeeping")
    generate = roles.add_parser("generate", help="hold warmed models and run jobs")
    generate.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="a model of the catalogue; repeat for several (default: the catalogue's first)",
    )
    arguments = parser.parse_args()
    # Model code is never fetched or run from a checkpoint.
    os.environ["DIFFUSERS_DISABLE_CUSTOM_CODE"] = "1"
    # Libraries draw bars while they load; a line of the log is an event.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        settings = get_settings()
        configure_logging(settings)
        configure_tracing(settings, f"darkroom-worker-{arguments.role}")
        if arguments.role == "cpu":
            from worker.cpu import run_cpu_worker

            run_cpu_worker(settings)
        else:
            specs = _chosen(settings, arguments.model)
            from worker.generate import run_generate_worker

            run_generate_worker(settings, specs)
    except (CatalogError, FilterUnavailable, ModelUnavailable, SettingsError) as error:
        for line in str(error).splitlines():
            print(f"darkroom worker: {line}", file=sys.stderr)
        return EXIT_CONFIGURATION
    finally:
        shut_down_tracing()
    return 0


def _chosen(settings: Settings, wanted: list[str] | None) -> list[ModelSpec]:
    catalog = load_catalog(settings.models_file)
    if not wanted:
        return [catalog.default]
    specs = []
    for name in wanted:
        spec = catalog.get(name)
        if spec is None:
            raise CatalogError(f"The model catalogue {settings.models_file} has no model {name}.")
        specs.append(spec)
    return specs


code = main()
# Everything is closed. Not sys.exit: a thread that is inside C++ by then, such as one that loads an
# embedding model, could not be unwound and would abort the process.
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
