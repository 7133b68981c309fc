"""Hints between processes: the Transport protocol and one driver module for each kind of server. Nothing sent here is stored."""
