"""Settings: the schema, and YAML files that hold only what differs."""
