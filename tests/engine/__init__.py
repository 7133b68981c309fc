"""The contract of carrying out, on both stores: each test names the hazard that it is about (design, protocol review part 3)."""
