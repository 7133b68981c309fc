"""Plain values that every other layer speaks: errors, answers, moments and keys. They import nothing of ours."""
