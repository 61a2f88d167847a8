"""Results go to their destinations, again and again until they are there."""
