"""Baselines that sparse fusion is compared with."""
