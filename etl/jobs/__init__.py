"""The jobs of a run: read, build, count, write. Thin ends around the builders."""
