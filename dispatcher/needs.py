"""Which models a job document needs, as far as a document tells. No I/O."""
