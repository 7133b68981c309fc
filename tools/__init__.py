"""Tools for the developers of groundstate; no wheel contains them."""
