"""groundstate's own rows (attempts, workers, accepted reactions), and claiming a record, which means locking it and checking its
attempts.
"""
