"""The command line: the only place that composes stages, prints, and imports heavy packages lazily."""
