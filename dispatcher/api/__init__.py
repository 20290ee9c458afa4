"""The dispatcher over HTTP: nodes on one side, users on the other."""
