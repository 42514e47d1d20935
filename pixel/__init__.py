"""The paper's pixel-space results."""
