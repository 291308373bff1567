"""The tour: the idea of the engine in seven steps, each with a moving figure and numbers that are
asserted, run on the engine itself and written as one page."""
