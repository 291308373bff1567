"""Several processes that work on one thing, as torchrun starts them."""
