"""What the kit costs and how good it is, measured side by side in one run."""
