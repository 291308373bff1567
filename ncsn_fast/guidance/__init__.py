"""What steers a chain: conditions, measurements, anybody's drift."""
