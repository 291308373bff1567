"""Networks prepared for inference: private copies, fast, that follow their sources."""
