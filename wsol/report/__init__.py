"""Floor 5: pictures and pages. Runs without torch."""
