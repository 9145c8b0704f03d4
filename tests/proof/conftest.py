"""Before any test module here imports torch: see `worker.engine` for why threads must sleep."""

import worker.engine  # noqa: F401
