"""All that finished runs say, as one HTML page."""
