"""Grafana's dashboards: defined in `definitions`, written by `python -m deploy.grafana`."""
