"""What every HTTP service of ours is made of: the server, the limit of bodies, problems, the page at `/docs`."""
