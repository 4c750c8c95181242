"""All results of finished runs as one HTML page."""
