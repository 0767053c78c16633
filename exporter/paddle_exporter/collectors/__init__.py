"""Collectors: one file a source. A collector is a callable that yields fresh metric families; the guard isolates it."""
