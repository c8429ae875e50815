"""What is done once: jars, the class archive of Java, the pages made from contracts."""
