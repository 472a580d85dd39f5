"""How properties are drawn: without a random seed, so that a failure is the same everywhere."""

from hypothesis import settings

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
SLOWER_PROPERTY = settings(PROPERTY, max_examples=20)
