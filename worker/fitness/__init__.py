"""Whether this node is good enough for the operator's jobs: GPU, disk, lines and pace, before it is ready."""

from worker.fitness.fitness import Fitness
from worker.fitness.open import Site, checks_of, open_fitness

__all__ = ["Fitness", "Site", "checks_of", "open_fitness"]
