"""Adapters to frameworks, one file a thing they hook into. Only these files import a framework, and only when used."""
