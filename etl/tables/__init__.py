"""Builders of tables, one file each: frames in, a frame out, nothing read or written."""
