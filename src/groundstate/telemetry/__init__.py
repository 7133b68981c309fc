"""Exports metrics and traces of an app. There is one module for each tool that receives them."""
