"""The tour: the idea of the engine step by step, each with a moving figure and numbers that are
asserted, run on the engine itself and written as one page."""
