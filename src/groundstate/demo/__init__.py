"""The demo: a small real shop whose worker is killed again and again, and three books that must balance afterwards.

`shop.py` is the user's code, the example of docs/first-steps.md. The other modules play the world around it, in processes of their own. No
other package of groundstate imports this one; it uses only public names, as any application does.
"""
