"""GPU ops of sharevl-lite, usable on their own. Each has a torch body with the same signature for any device."""
