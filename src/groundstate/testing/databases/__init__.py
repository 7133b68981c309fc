"""The scratch databases of the crash lab, which are set back to equal content before each run."""
