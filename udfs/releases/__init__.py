"""From feature tables to what readers see: audit, publication, reading, export."""
