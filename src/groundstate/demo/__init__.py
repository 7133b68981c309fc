"""The demo: a small but real shop whose worker is killed again and again, and three books (independent records) that must agree afterwards.

`shop.py` is the user's code, the example of docs/first-steps.md. The other modules play the world around the shop, in processes of their
own. No other package of groundstate imports this one; this one uses only public names, as any application does.
"""
