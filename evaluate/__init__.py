"""What the boxes and the milliseconds are worth: localization protocols, latency, reports."""
