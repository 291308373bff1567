"""The samples of one network and seed in a folder, made by one process or by many."""
