"""Random sequences of what two operators do to releases, beside a small model of what readers may see."""
