"""The dispatcher's own decisions in virtual time, beside plain queues and what could be done at best."""
