"""Carry out declared reactions: claim records, call services, conclude, settle and sweep. Imports neither the `app` package nor a database
driver.
"""
