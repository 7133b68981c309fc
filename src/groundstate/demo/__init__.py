"""The demo: a small but real shop whose worker is killed again and again, and three books (independent records) that must agree afterwards.

`shop.py` is the user's code, the example of docs/first-steps.md. The other modules simulate the parties around the shop, such as customers
and a payment gateway, in processes of their own. The demo uses only public names of groundstate, as any application does. No other package
imports the demo; the command line loads it by its name, for `groundstate demo`.
"""
