"""Gin recipes; `carbrand.config` finds them from a checkout and from an installed wheel alike."""
