"""What ``ncsn-fast evaluate`` tells, in words and as a page."""
