"""The scratch databases of the crash lab, which are reset to the same content before each run."""
