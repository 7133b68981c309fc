"""The crash lab: that it moves what it says, finds what is wrong, and lets what is right be."""
