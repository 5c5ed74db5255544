"""What the integrations into frameworks share: one lazy engine, streams that end, roles, options of a call."""
