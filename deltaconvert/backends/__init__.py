"""The places where a delta graph can run. reference is the meaning; the others are faster spellings of it."""
