"""Sends hints (messages that say where to look) between processes: the Transport protocol, and one module for each kind of server.

Nothing that is sent is stored.
"""
