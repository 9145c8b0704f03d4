"""What every slice uses: settings, database, broker, storage, tenants, logs, metrics."""
