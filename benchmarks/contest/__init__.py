"""How anything is compared."""
