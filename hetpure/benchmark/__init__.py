"""How far from its own limit a machine computes purifications and their gradients."""
