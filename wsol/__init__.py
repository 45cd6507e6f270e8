"""wsol."""
