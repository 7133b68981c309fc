"""groundstate's own rows (attempts, worker incarnations, accepted reactions), and claiming a record by means of its attempt."""
