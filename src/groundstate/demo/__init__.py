"""The demo: a small real shop whose worker is killed again and again, and three books that must balance afterwards.

`shop.py` is the user's code, the example of the README. Everything else plays the world around it, in processes of its own.
Nothing of groundstate imports this package; it uses public names alone, as any application does.
"""
