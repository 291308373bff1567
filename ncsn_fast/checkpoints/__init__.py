"""Networks on disk: ours, and what lies in other people's files."""
