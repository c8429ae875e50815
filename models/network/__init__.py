"""The decoder and its parts, every `nn.Module`, and how weights are kept."""
