"""One-time setup: jars, the class archive of Java, the pages generated from contracts."""
