"""Reads and writes groundstate's own rows (attempts, workers, accepted reactions), and claims records: locks them, and checks whether an
attempt blocks them.
"""
