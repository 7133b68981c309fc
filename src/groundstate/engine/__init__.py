"""Carries out what was declared: claim, transact, call, conclude, settle, sweep. Knows no face and no driver."""
