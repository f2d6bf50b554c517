"""Parser of compiled programs (HLO text) and their cost."""
