"""The images, built and run for real, on stand-ins for the base images that no registry is needed for.

`python -m tests.images` (`make test-images`) makes what they stand on and runs them. What is not proven that way is
what the real bases are like beyond the paths, users, variables and flags that `bases` tells of.
"""
