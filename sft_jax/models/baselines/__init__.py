"""The models that sparse fusion is compared with."""
