"""Cost of a model: predicted from its program, planned for other devices, and measured here."""
