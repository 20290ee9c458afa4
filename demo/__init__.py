"""`make demo-fleet`: a dispatcher and a small fleet of workers on this machine, some of which are killed and frozen."""
